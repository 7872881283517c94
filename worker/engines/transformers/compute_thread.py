"""Computing in a thread of its own, which ends with the work.

OpenMP keeps workers for each thread that has ever computed. Where they are more than the cores altogether, each goes
to sleep as soon as it has to wait (libgomp's "throttled" spinning), and waking it up takes as long as a small layer: on
two cores the thread that only loaded the model cost the one that decodes a third of its speed. A thread that ends takes
its workers along.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def apart(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises; blocks."""
    thread, future = _begun(work)
    thread.join()
    return future.result()


async def compute_apart(work: Callable[[], Result]) -> Result:
    """The same without blocking the event loop. Cancelled, it leaves the work to its end, and nobody waits for it."""
    _, future = _begun(work)
    return await asyncio.wrap_future(future)


def _begun(work: Callable[[], Result]) -> tuple[threading.Thread, "Future[Result]"]:
    future: Future[Result] = Future()

    def run() -> None:
        if (
            not future.set_running_or_notify_cancel()
        ):  # from here on a waiter that is cancelled changes nothing
            return
        try:
            future.set_result(work())
        except BaseException as error:  # raised again where the result is wanted
            future.set_exception(error)

    thread = threading.Thread(target=run, name="apart", daemon=True)
    thread.start()
    return thread, future
