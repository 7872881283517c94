"""Work in a thread that ends with it."""

import asyncio
import threading

import pytest

from worker.engines.transformers.compute_thread import run_in_thread, run_in_thread_async


def test_the_thread_has_ended_when_the_result_is_there() -> None:
    thread = run_in_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


@pytest.mark.asyncio
async def test_what_it_raises_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_thread(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await run_in_thread_async(lambda: 1 / 0)


@pytest.mark.asyncio
async def test_a_waiter_that_is_cancelled_leaves_the_work_alone() -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(10)
        done.set()

    waiting = asyncio.create_task(run_in_thread_async(work))
    assert await asyncio.to_thread(begun.wait, 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go.set()
    assert await asyncio.to_thread(done.wait, 10)
