"""Background tasks that are restarted after a failure, for as long as the process serves."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger("canopy.api")

RETRY_SECONDS = 5.0


def start(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> "asyncio.Task[None]":
    """Starts `work` as a task; the caller cancels it at the end."""
    return asyncio.create_task(restarting(name, work), name=name)


async def restarting(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs `work` until it returns, again after each failure, such as a full disk."""
    while True:
        try:
            await work()
        except Exception as error:  # fate: logged, and the work is restarted
            log.error("background work failed", work=name, exc_info=error)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return
