"""Work beside the requests, for as long as the process lives."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger("canopy.api")

RETRY_SECONDS = 5.0


async def keep(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs `work`, and again a while after it failed: a full disk or a fault must not end it for good."""
    while True:
        try:
            await work()
        except Exception as error:  # fate: logged, and the work begins again
            log.error("background work failed", work=name, exc_info=error)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


def start(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> "asyncio.Task[None]":
    """Begins it; the caller cancels it at the end."""
    return asyncio.create_task(keep(name, work), name=name)
