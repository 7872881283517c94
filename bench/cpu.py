"""Processor time of processes; of one that has ended it reads 0."""

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psutil

SECONDS = "seconds"  # the key of the elapsed time in what `measured` yields


@contextmanager
def measured(pids: Mapping[str, Sequence[int]]) -> Iterator[dict[str, float]]:
    """Yields a dict, filled at the end: processor seconds of each group, elapsed `seconds`."""
    usage: dict[str, float] = {}
    gc.collect()  # before the block, so that it does not run within it
    before = {name: _processor_seconds(group) for name, group in pids.items()}
    began = time.perf_counter()
    yield usage
    usage[SECONDS] = time.perf_counter() - began
    for name, group in pids.items():
        usage[name] = max(0.0, _processor_seconds(group) - before[name])


def _processor_seconds(group: Sequence[int]) -> float:
    seconds = 0.0
    for pid in group:
        with suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            seconds += times.user + times.system
    return seconds
