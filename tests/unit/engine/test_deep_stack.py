"""Threads with a deep stack."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from worker.engines.deep_stack import run_deep


def test_two_at_once_leave_the_size_of_stacks_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one would find the first one's size, and set it again at the end."""
    sizes, before, numbers = threading.stack_size, threading.stack_size(), count(1)

    def slow(size: int = 0) -> int:
        former = sizes(size)
        if size and former != size:
            time.sleep(0.2 * next(numbers))
        elif size:
            time.sleep(0.5)
        return former

    monkeypatch.setattr(threading, "stack_size", slow)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run_deep, lambda: 1, 5.0) for _ in range(2)]
        assert [each.result(10) for each in both] == [1, 1]
    after = sizes(before)
    assert after == before
