"""dramatiq: the broker and the actor of worker and driver.

Its own result backends are Redis and Memcached, and their readers poll. To have results on the same broker, this one
publishes each to the queue that the message names, which costs less than either.
"""

import json
import os
from typing import Any

import dramatiq  # type: ignore[import-not-found]
from dramatiq.brokers.rabbitmq import RabbitmqBroker  # type: ignore[import-not-found]
from dramatiq.results import ResultBackend, Results  # type: ignore[import-not-found]


class ReplyQueue(ResultBackend):
    """Results as messages: one publish each, on the worker thread's own connection."""

    def store_result(self, message: Any, result: object, ttl: int) -> None:
        """To the queue named in the message's options."""
        body = json.dumps({"id": message.message_id, "result": result}).encode()
        broker.channel.basic_publish("", message.options["reply_to"], body)


# Between two blocks the sending thread is idle for longer than a heartbeat, and blocking pika answers none meanwhile.
broker = RabbitmqBroker(
    url=f"{os.environ['BENCH_AMQP_URL']}?heartbeat=0",
    confirm_delivery=os.environ["BENCH_CONFIRM"] == "1",
)
broker.add_middleware(Results(backend=ReplyQueue()))
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=os.environ["BENCH_QUEUE"], store_results=True)
def echo(text: str) -> str:
    """Costs nothing."""
    return text
