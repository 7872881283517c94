"""On PYTHONPATH, moves `time.time` by SKEW_SECONDS for the whole process."""

import os
import time

_skew = float(os.environ["SKEW_SECONDS"])
_right = time.time


def _wrong() -> float:
    return _right() + _skew


time.time = _wrong
