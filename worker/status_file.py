"""The node's status in a file, for a container's probes: they ask neither the broker nor the node.

A file that is not written any more is that of a process that hangs.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from broker.threads import in_thread

REPEAT_SECONDS = 5.0


async def keep(file: Path, status: Callable[[], str]) -> None:
    """Writes the status again and again, until it is cancelled; then the file goes."""
    try:
        while True:
            with contextlib.suppress(OSError):  # fate: the probes see an old file
                await in_thread(_replace, file, status())
            await asyncio.sleep(REPEAT_SECONDS)
    finally:
        _remove(file)


def _replace(file: Path, text: str) -> None:
    """Replaces the content at once: a reader never sees half of it."""
    fresh = file.with_suffix(".new")
    fresh.write_text(f"{text}\n")
    os.replace(fresh, file)


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
