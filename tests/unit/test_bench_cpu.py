"""Processor time, read from the kernel."""

import os
import time

from bench import cpu


def test_a_block_tells_what_it_cost() -> None:
    with cpu.measured({"me": [os.getpid()], "gone": [2**22 + 1]}) as usage:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
    assert usage["gone"] == 0
    assert usage[cpu.SECONDS] >= usage["me"] * 0.9 >= 0.03
