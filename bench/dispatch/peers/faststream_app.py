"""FastStream: the worker. It answers to whatever queue the request names."""

import asyncio
import os

from faststream import FastStream  # type: ignore[import-not-found]
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue  # type: ignore[import-not-found]

PREFETCH = 256
QUEUE = RabbitQueue(os.environ["BENCH_QUEUE"], durable=True)

broker = RabbitBroker(
    os.environ["BENCH_AMQP_URL"], default_channel=Channel(prefetch_count=PREFETCH), logger=None
)


@broker.subscriber(QUEUE)
async def echo(text: str) -> str:
    """Costs nothing."""
    return text


if __name__ == "__main__":
    asyncio.run(FastStream(broker, logger=None).run())
