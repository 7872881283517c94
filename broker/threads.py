"""Work on files in a thread, off the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    """The work in a thread, which a cancellation waits for.

    A thread cannot be cancelled, so after `asyncio.to_thread` alone it may still change a file that
    the cancelled task has cleaned up.
    """
    task = asyncio.create_task(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen: the cancellation is what the caller hears of
        raise
