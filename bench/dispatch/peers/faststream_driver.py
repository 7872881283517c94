"""FastStream: its driver. `python -m ... request` asks with `broker.request`, of which a broker has one under way at a
time; `replies` publishes and takes the answers with a subscriber of its own, which its maintainers advise for more.
"""

import asyncio
import os
import sys
import uuid

from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue  # type: ignore[import-not-found]

from bench.dispatch import loop

_QUEUE = os.environ["BENCH_QUEUE"]
_REPLIES = "bench.faststream.answers"
_SECONDS = 60.0

_broker = RabbitBroker(
    os.environ["BENCH_AMQP_URL"], default_channel=Channel(prefetch_count=256), logger=None
)
_open: dict[str, asyncio.Future[None]] = {}


async def _request() -> None:
    await _broker.request("Hello", _QUEUE, persist=True, timeout=_SECONDS)


async def _publish() -> None:
    number = uuid.uuid4().hex
    _open[number] = answer = asyncio.get_running_loop().create_future()
    await _broker.publish("Hello", _QUEUE, persist=True, reply_to=_REPLIES, correlation_id=number)
    async with asyncio.timeout(_SECONDS):
        await answer


async def _on_reply(_text: str, message: RabbitMessage) -> None:
    _open.pop(str(message.correlation_id)).set_result(None)


async def main(way: str) -> None:
    """Drives until standard input ends."""
    if way == "replies":
        _broker.subscriber(RabbitQueue(_REPLIES, exclusive=True))(_on_reply)
    async with _broker:
        await _broker.start()
        await _broker.declare_queue(RabbitQueue(_QUEUE, durable=True))  # the worker may come later
        await loop.serve(_request if way == "request" else _publish)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
