"""Work of a library that recurses as deep as its input is nested, and that nothing can end."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")

# A grammar of the longest source is a chain that deep at most. Only touched memory counts.
_STACK_BYTES = 512 << 20
_starting = threading.Lock()  # a stack's size is the process's, until the thread has started


def run_deep(
    work: Callable[[], Result], seconds: float, ended: Callable[[], object] = lambda: None
) -> Result:
    """What `work` returns or raises; blocks, for so long at most: then TimeoutError.

    `ended` is called in the thread that works once it ends, in time or not.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again where the result is awaited
            future.set_exception(error)
        finally:
            ended()

    thread = threading.Thread(target=run, name="deep", daemon=True)
    with _starting:
        former = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(former)
    return future.result(seconds)
