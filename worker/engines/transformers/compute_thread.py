"""Computing in a thread that ends with the work.

OpenMP keeps worker threads for each thread that has ever computed. With more of them than cores,
each goes to sleep as soon as it waits (libgomp's "throttled" spinning), and waking it takes as long
as a small layer: on two cores, a thread that had only loaded the model slowed decoding by a third.
A thread that ends takes its workers along.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def run_in_thread(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises; blocks."""
    thread, future = _start(work)
    thread.join()
    return future.result()


async def run_in_thread_async(work: Callable[[], Result]) -> Result:
    """The same without blocking the event loop. If cancelled, the work runs on unobserved."""
    _, future = _start(work)
    return await asyncio.wrap_future(future)


def _start(work: Callable[[], Result]) -> tuple[threading.Thread, "Future[Result]"]:
    future: Future[Result] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():  # from here on a cancel has no effect
            return
        try:
            future.set_result(work())
        except BaseException as error:  # raised again where the result is awaited
            future.set_exception(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="compute", daemon=True)
    thread.start()
    return thread, future
