"""Processor time a process took: unlike a clock's time, hardly touched by what else the machine does."""

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


class Meter:
    """Reads the processor time of groups of processes. Linux; elsewhere, and for one that is gone, it reads 0."""

    def __init__(self, pids: Mapping[str, Sequence[int]]) -> None:
        self._pids = dict(pids)

    def read(self) -> dict[str, float]:
        """Seconds by name since each process began, all its threads together."""
        return {name: sum(map(_seconds, pids)) for name, pids in self._pids.items()}


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Seconds by name between two readings."""
    return {name: max(0.0, after[name] - before[name]) for name in after}


@contextmanager
def spending(meter: Meter) -> Iterator[dict[str, float]]:
    """Filled when the block ends: processor seconds by name, and `seconds`, how long it took."""
    found: dict[str, float] = {}
    gc.collect()  # not within the block
    before, began = meter.read(), time.perf_counter()
    yield found
    found |= spent(before, meter.read())
    found["seconds"] = time.perf_counter() - began


def _seconds(pid: int) -> float:
    """The scheduler's own account in nanoseconds; the usual `utime` comes in steps of 10 ms, longer than a request."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(_nanoseconds(thread) for thread in threads) / 1e9


def _nanoseconds(schedstat: Path) -> int:
    try:
        return int(schedstat.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # the thread ended meanwhile
        return 0
