"""Celery: the worker's application, and as a program the driver."""

import asyncio
import os
from typing import Any

from celery import Celery  # type: ignore[import-not-found]

from bench.dispatch import loop

_PATIENCE = 60.0  # seconds without a result

app = Celery("bench", broker=os.environ["BENCH_AMQP_URL"], backend="rpc://")
app.conf.update(task_default_queue="bench.celery", broker_connection_retry_on_startup=True)


@app.task(name="echo")
def echo(text: str) -> str:
    return text


async def drive() -> None:
    """Sends and drains results in one thread, which is the fastest way that Celery's API has."""
    unanswered: dict[str, asyncio.Future[None]] = {}
    is_needed = asyncio.Event()

    def on_result(result: Any) -> None:
        unanswered.pop(result.id).set_result(None)
        app.backend.remove_pending_result(result)

    async def request() -> None:
        result = echo.apply_async(("Hello",))
        unanswered[result.id] = asyncio.get_running_loop().create_future()
        result.then(on_result)
        is_needed.set()
        await unanswered[result.id]

    async def drain() -> None:
        while True:
            await is_needed.wait()
            await asyncio.sleep(0)  # so that those who were answered send again
            if unanswered:
                app.backend.result_consumer.drain_events(timeout=_PATIENCE)
            else:
                is_needed.clear()

    async with asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(drain())
        await loop.serve(request)
        draining.cancel()


if __name__ == "__main__":
    asyncio.run(drive())
