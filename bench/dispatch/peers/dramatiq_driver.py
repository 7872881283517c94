"""dramatiq: its driver. One thread sends, another takes the results."""

import json
import os
import threading
from time import perf_counter
from typing import Any

from bench.dispatch import loop
from bench.dispatch.loop import Block, Question
from bench.dispatch.peers.dramatiq_app import broker, echo

_REPLIES = os.environ["BENCH_QUEUE"] + ".replies"
_PATIENCE_SECONDS = 60.0


class Driver:
    """Sends in the caller's thread; answers come in a thread of its own."""

    def __init__(self) -> None:
        self._sent: dict[str, float] = {}
        self._latencies: list[float] = []
        self._free = threading.Semaphore(0)
        self._listening = threading.Event()
        threading.Thread(target=self._listen, name="results", daemon=True).start()
        self._listening.wait(_PATIENCE_SECONDS)

    def measure(self, question: Question) -> Block:
        """One closed loop. Raises TimeoutError if answers stop coming."""
        self._latencies = []
        began = perf_counter()
        for _ in range(question.in_flight):
            self._send()
        while perf_counter() < began + question.seconds:
            self._wait()
            self._send()
        for _ in range(question.in_flight):
            self._wait()
        return Block(perf_counter() - began, self._latencies)

    def _wait(self) -> None:
        if not self._free.acquire(timeout=_PATIENCE_SECONDS):
            raise TimeoutError("no result came")

    def _send(self) -> None:
        message = echo.message_with_options(args=("Hello",), reply_to=_REPLIES)
        self._sent[message.message_id] = perf_counter()
        broker.enqueue(message)

    def _listen(self) -> None:
        channel = broker.channel  # this thread's own
        channel.queue_declare(_REPLIES, exclusive=True)
        channel.basic_consume(_REPLIES, self._on_result, auto_ack=True)
        self._listening.set()
        channel.start_consuming()

    def _on_result(self, _channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        self._latencies.append((perf_counter() - self._sent.pop(json.loads(body)["id"])) * 1000)
        self._free.release()


if __name__ == "__main__":
    driver = Driver()
    loop.serve_blocking(lambda: driver.measure(Question(1, 0)), driver.measure)
