"""Processor time, read from the kernel."""

import os
import time

from bench.cpu import Meter, spending, spent


def test_work_is_seen_and_rest_is_not() -> None:
    meter = Meter({"me": [os.getpid()]})
    began = meter.read()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    worked = meter.read()
    assert spent(began, worked)["me"] >= 0.03


def test_a_block_tells_what_it_took() -> None:
    with spending(Meter({"me": [os.getpid()], "gone": [2**22 + 1]})) as found:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
    assert found["gone"] == 0
    assert found["seconds"] >= found["me"] * 0.9 >= 0.03


def test_a_process_that_is_gone_takes_nothing() -> None:
    meter = Meter({"gone": [2**22 + 1]})
    assert meter.read() == {"gone": 0.0}
    assert spent({"gone": 1.0}, {"gone": 0.0}) == {"gone": 0.0}
