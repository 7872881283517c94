"""Processor time of processes. Linux; elsewhere, and for a process that has ended, it reads 0."""

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SECONDS = "seconds"  # the key of the elapsed time in what `measured` yields


@contextmanager
def measured(pids: Mapping[str, Sequence[int]]) -> Iterator[dict[str, float]]:
    """Yields a dict that is filled at the end of the block.

    It holds the processor seconds of each group of processes, and the elapsed `seconds`.
    """
    usage: dict[str, float] = {}
    gc.collect()  # before the block, so that it does not run within it
    before = _read(pids)
    began = time.perf_counter()
    yield usage
    usage[SECONDS] = time.perf_counter() - began
    for name, seconds in _read(pids).items():
        usage[name] = max(0.0, seconds - before[name])


def _read(pids: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {name: sum(map(_process_seconds, group)) for name, group in pids.items()}


def _process_seconds(pid: int) -> float:
    """From the scheduler's nanoseconds: `utime` has steps of 10 ms, longer than a request."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(map(_thread_nanoseconds, threads)) / 1e9


def _thread_nanoseconds(schedstat: Path) -> int:
    try:
        return int(schedstat.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # the thread has ended meanwhile
        return 0
