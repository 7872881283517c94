"""Processor time, read from the kernel."""

import os
import time

from bench.cpu import Meter, spent


def test_work_is_seen_and_rest_is_not() -> None:
    meter = Meter({"me": [os.getpid()]})
    began = meter.read()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    worked = meter.read()
    assert spent(began, worked)["me"] >= 0.03


def test_a_process_that_is_gone_takes_nothing() -> None:
    meter = Meter({"gone": [2**22 + 1]})
    assert meter.read() == {"gone": 0.0}
    assert spent({"gone": 1.0}, {"gone": 0.0}) == {"gone": 0.0}
