"""Returns freed memory to the operating system.

After a burst of large prompts, glibc keeps nearly all of their memory: its heap shrinks only at the
end, where something small is still in use. `malloc_trim` returns every free page.
"""

import asyncio
import ctypes
from collections.abc import Callable

import psutil

LOOK_EVERY = 20.0  # seconds
WORTH_BYTES = 32_000_000  # less is not worth a pause of some milliseconds

Trim = Callable[[], object]


def malloc_trim() -> Trim | None:
    """The C library's function; None where there is none (musl, macOS)."""
    function = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return None if function is None else lambda: function(0)


async def trim_repeatedly(trim: Trim | None = None, look_every: float = LOOK_EVERY) -> None:
    """Trims while the process has clearly more memory than it once got along with. Never ends."""
    trim = trim or malloc_trim()
    process = psutil.Process()
    least = process.memory_info().rss
    while trim is not None:
        await asyncio.sleep(look_every)
        resident = process.memory_info().rss
        if resident >= least + WORTH_BYTES:
            await asyncio.to_thread(trim)  # ctypes releases the interpreter's lock
        least = min(least, resident)
