"""dramatiq: the worker's broker and actor, and as a program the driver.

Its own result backends, Redis and Memcached, are polled. To have results on the same broker, this
one publishes each to the queue that the message names, which costs less than either.
"""

import json
import os
import threading
from time import perf_counter
from typing import Any

import dramatiq  # type: ignore[import-not-found]
from dramatiq.brokers.rabbitmq import RabbitmqBroker  # type: ignore[import-not-found]
from dramatiq.results import ResultBackend, Results  # type: ignore[import-not-found]

from bench.dispatch import loop
from bench.dispatch.loop import Block, Result

_REPLIES = os.environ["BENCH_QUEUE"] + ".replies"
_PATIENCE = 60.0  # seconds without a result


class ReplyQueue(ResultBackend):
    """Results as messages: one publish each, on the worker thread's own connection."""

    def store_result(self, message: Any, result: object, ttl: int) -> None:
        body = json.dumps({"id": message.message_id, "result": result}).encode()
        broker.channel.basic_publish("", message.options["reply_to"], body)


# No heartbeats: between two blocks the sending thread is idle, and blocking pika answers none.
broker = RabbitmqBroker(
    url=f"{os.environ['BENCH_AMQP_URL']}?heartbeat=0",
    confirm_delivery=os.environ["BENCH_CONFIRM"] == "1",
)
broker.add_middleware(Results(backend=ReplyQueue()))
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="echo", queue_name=os.environ["BENCH_QUEUE"], store_results=True)
def echo(text: str) -> str:
    return text


class _Driver:
    """Sends in the caller's thread; results arrive in a thread of their own."""

    def __init__(self) -> None:
        self._sent: dict[str, float] = {}
        self._latencies: list[float] = []
        self._results = threading.Semaphore(0)
        self._listening = threading.Event()
        threading.Thread(target=self._listen, name="results", daemon=True).start()
        self._listening.wait(_PATIENCE)

    def run(self, block: Block) -> Result:
        """Raises TimeoutError if results stop coming."""
        self._latencies = []
        began = perf_counter()
        for _ in range(block.in_flight):
            self._send()
        while perf_counter() < began + block.seconds:
            self._wait()
            self._send()
        for _ in range(block.in_flight):
            self._wait()
        return Result(perf_counter() - began, self._latencies)

    def _wait(self) -> None:
        if not self._results.acquire(timeout=_PATIENCE):
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
        self._results.release()


if __name__ == "__main__":
    loop.serve_blocking(_Driver().run)
