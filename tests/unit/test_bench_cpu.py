"""Processor time, read from the kernel."""

import os
import time

from bench import cpu

ROUNDING = 0.02  # seconds: user and system time are each read in ticks of 10 ms


def test_a_block_tells_what_it_cost() -> None:
    with cpu.measured({"me": [os.getpid()], "gone": [2**22 + 1]}) as usage:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
    assert usage["gone"] == 0
    assert 0.05 - ROUNDING <= usage["me"] <= usage[cpu.SECONDS] + ROUNDING
