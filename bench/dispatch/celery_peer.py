"""Celery: the worker's application, and as a program the driver.

BENCH_TUNED=1: as its guide to short tasks advises, and late acknowledgements as Canopy has.
The driver's one thread sends and drains results, which is the fastest way that its API has.
"""

import os
from time import perf_counter
from typing import Any

from celery import Celery  # type: ignore[import-not-found]

from bench.dispatch import loop
from bench.dispatch.loop import Block, Result

_PATIENCE = 60.0  # seconds without a result

app = Celery("bench", broker=os.environ["BENCH_AMQP_URL"], backend="rpc://")
app.conf.update(
    task_default_queue=os.environ["BENCH_QUEUE"], broker_connection_retry_on_startup=True
)
if os.environ["BENCH_TUNED"] == "1":
    app.conf.update(
        task_acks_late=True,
        worker_prefetch_multiplier=128,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_disable_rate_limits=True,
    )


@app.task(name="echo")
def echo(text: str) -> str:
    return text


class _Loop:
    """One closed loop over `apply_async` and `AsyncResult.then`."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._deadline = 0.0
        self._in_flight = 0
        self._latencies: list[float] = []

    def run(self) -> Result:
        """Raises TimeoutError if results stop coming."""
        began = last_result = perf_counter()
        self._deadline = began + self._block.seconds
        for _ in range(self._block.in_flight):
            self._send()
        while self._in_flight:
            try:
                app.backend.result_consumer.drain_events(timeout=1)
                last_result = perf_counter()
            except TimeoutError:
                if perf_counter() - last_result > _PATIENCE:
                    raise
        return Result(perf_counter() - began, self._latencies)

    def _send(self) -> None:
        sent = perf_counter()

        def on_result(result: Any) -> None:
            self._latencies.append((perf_counter() - sent) * 1000)
            self._in_flight -= 1
            app.backend.remove_pending_result(result)
            if perf_counter() < self._deadline:
                self._send()

        self._in_flight += 1
        echo.apply_async(("Hello",)).then(on_result)


if __name__ == "__main__":
    loop.serve_blocking(lambda block: _Loop(block).run())
