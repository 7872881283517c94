"""How much of its device's memory this process takes, for operators.

For a GPU it is what PyTorch has reserved there: the numbers are its own, so nothing waits for the
GPU. For a CPU it is the process's resident memory and the machine's. Other devices are elsewhere.
"""

import os
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

LOOK_SECONDS = 2.0  # between two looks: states are published more often
_STATM = Path("/proc/self/statm")
_MEMINFO = Path("/proc/meminfo")


class Memory(NamedTuple):
    """Bytes: taken by this process, all that the device has, and what nobody takes.

    `free` is 0, which is unknown, for a GPU: only its driver knows it.
    """

    taken: int = 0
    total: int = 0
    free: int = 0


UNKNOWN = Memory()


class DeviceMemory:
    """The memory of the device with that name, at most LOOK_SECONDS old."""

    def __init__(self) -> None:
        self._looked_at = float("-inf")
        self._memory = UNKNOWN

    def of(self, device: str) -> Memory:
        """UNKNOWN where it cannot be known."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._memory = _look(device)
        return self._memory


def _look(device: str) -> Memory:
    if device == "cpu":
        return _of_machine()
    torch = sys.modules.get("torch")  # importing it here would take seconds
    if torch is None or not device.startswith("cuda"):
        return UNKNOWN
    return _of_gpus(torch, [int(index) for index in re.findall(r"cuda:(\d+)", device)])


def _of_machine() -> Memory:
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        resident = int(_STATM.read_text().split()[1])
    except (OSError, ValueError, IndexError):  # not Linux
        return UNKNOWN
    return Memory(resident * page, os.sysconf("SC_PHYS_PAGES") * page, _available())


def _available() -> int:
    """What the kernel could give to new programs."""
    try:
        meminfo = _MEMINFO.read_text()
    except OSError:  # hidden from this process
        return 0
    match = re.search(r"^MemAvailable: +(\d+) kB", meminfo, re.MULTILINE)
    if match is None:
        return 0
    return int(match[1]) * 1024


def _of_gpus(torch: Any, indexes: list[int]) -> Memory:
    if not torch.cuda.is_initialized():
        return UNKNOWN
    taken = total = 0
    for index in indexes:
        taken += int(torch.cuda.memory_reserved(index))
        total += int(torch.cuda.get_device_properties(index).total_memory)
    return Memory(taken, total)
