"""Celery: its driver. One thread sends and drains results, which is the fastest way that its API has."""

from time import perf_counter
from typing import Any

from bench.dispatch import loop
from bench.dispatch.loop import Block, Question
from bench.dispatch.peers.celery_app import app, echo

_PATIENCE_SECONDS = 60.0


class Loop:
    """One closed loop over `apply_async` and `AsyncResult.then`."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._until = 0.0
        self._open = 0
        self._latencies: list[float] = []

    def measure(self) -> Block:
        """Runs it. Raises TimeoutError if answers stop coming."""
        began = perf_counter()
        self._until = began + self._question.seconds
        for _ in range(self._question.in_flight):
            self._send()
        heard = perf_counter()
        while self._open:
            try:
                app.backend.result_consumer.drain_events(timeout=1)
                heard = perf_counter()
            except TimeoutError:
                if perf_counter() - heard > _PATIENCE_SECONDS:
                    raise
        return Block(perf_counter() - began, self._latencies)

    def _send(self) -> None:
        asked = perf_counter()

        def answered(result: Any) -> None:
            self._latencies.append((perf_counter() - asked) * 1000)
            self._open -= 1
            app.backend.remove_pending_result(result)
            if perf_counter() < self._until:
                self._send()

        self._open += 1
        echo.apply_async(("Hello",)).then(answered)


if __name__ == "__main__":
    loop.serve_blocking(
        lambda: echo.delay("Hello").get(timeout=_PATIENCE_SECONDS),
        lambda asked: Loop(asked).measure(),
    )
