"""The yardstick: the hops of a Canopy request through pika alone, without Canopy's code.

    driver -> queue -> hop -> queue -> hop -> reply queue -> driver

As in Canopy: durable queues, persistent jobs, every publish mandatory and confirmed, a delivery
acknowledged once its forward is confirmed, transient answers.

`python -m bench.dispatch.bare` is the driver, `… NUMBER` a hop: 1 or 2.
"""

import asyncio
import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel

from bench.dispatch import loop
from bench.dispatch.canopy_driver import make_job
from broker.encoding import encode

_QUEUES = ("bench.root", "bench.node")  # of the hops
_REPLY_QUEUE = "bench.reply"
_PREFETCH = 256
_SECONDS = 60.0  # for any reply of the broker, and for one round trip


async def _call(
    method: Callable[..., Any], /, *args: Any, reply: str = "callback", **kw: Any
) -> Any:
    """Awaits what a pika method passes to its callback."""
    arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    method(*args, **{reply: arrived.set_result}, **kw)
    return await asyncio.wait_for(arrived, _SECONDS)


async def _open_channel() -> Channel:
    """A channel on a connection of its own, with the queues of the hops."""
    url = pika.URLParameters(os.environ["BENCH_AMQP_URL"])
    connection = await _call(AsyncioConnection, url, reply="on_open_callback")
    channel: Channel = await _call(connection.channel, reply="on_open_callback")
    for queue in _QUEUES:
        await _call(channel.queue_declare, queue, durable=True)
    await _call(channel.basic_qos, prefetch_count=_PREFETCH)
    return channel


async def _serve_hop(number: int) -> None:
    """Takes from its queue and passes on; acknowledges what is confirmed."""
    channel = await _open_channel()
    following = (*_QUEUES, _REPLY_QUEUE)[number]

    def on_delivery(
        _channel: Channel, _method: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        if following == _REPLY_QUEUE:
            properties.delivery_mode = 1
        channel.basic_publish("", following, body, properties, mandatory=True)

    def on_confirm(frame: Any) -> None:
        # Every delivery makes one publish, so the tags of both are the same numbers.
        channel.basic_ack(frame.method.delivery_tag, multiple=frame.method.multiple)

    await _call(channel.confirm_delivery, on_confirm)
    await _call(channel.basic_consume, _QUEUES[number - 1], on_delivery)
    await asyncio.Event().wait()


async def _drive() -> None:
    """Sends jobs down all hops; many may be in flight."""
    channel = await _open_channel()
    body = encode(make_job("bare"))  # as many bytes as Canopy sends
    answers: dict[str, asyncio.Future[None]] = {}
    numbers = itertools.count()

    def on_reply(_channel: Channel, method: Any, properties: Any, _body: bytes) -> None:
        channel.basic_ack(method.delivery_tag)
        answers.pop(properties.correlation_id).set_result(None)

    async def request() -> None:
        number = str(next(numbers))
        answers[number] = asyncio.get_running_loop().create_future()
        properties = pika.BasicProperties(delivery_mode=2, correlation_id=number)
        channel.basic_publish("", _QUEUES[0], body, properties, mandatory=True)
        async with asyncio.timeout(_SECONDS):
            await answers[number]

    await _call(channel.confirm_delivery, lambda _frame: None)  # it waits for answers instead
    await _call(channel.queue_declare, _REPLY_QUEUE, exclusive=True)
    await _call(channel.basic_consume, _REPLY_QUEUE, on_reply)
    await loop.serve(request)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        asyncio.run(_drive())
    else:
        asyncio.run(_serve_hop(int(sys.argv[1])))
