"""The yardstick: the hops of a Canopy request through pika alone, without Canopy's code.

    driver -> exchange -> queue -> hop -> exchange -> queue -> hop -> reply queue -> driver

As in Canopy: durable exchanges and queues, persistent jobs, every publish mandatory and confirmed,
a delivery acknowledged once its forward is confirmed, transient answers.

`python -m bench.dispatch.bare HOPS` is the driver, `… HOPS NUMBER` one hop.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel

from bench.dispatch import loop
from bench.dispatch.canopy_driver import make_job
from broker.wire import encode

_KEY = "next"
_PREFETCH = 256
_SECONDS = 10.0  # for any reply of the broker, and for one round trip
_FUTURE = asyncio.Future[Any]


def _queue_name(hops: int, number: int) -> str:
    """The queue of a hop, and the exchange that leads to it; after the last: the reply queue."""
    return f"bench.{hops}.{number}"


async def _call(
    method: Callable[..., Any], /, *args: Any, reply: str = "callback", **kw: Any
) -> Any:
    """Awaits what a pika method passes to its callback."""
    arrived: _FUTURE = asyncio.get_running_loop().create_future()
    method(*args, **{reply: arrived.set_result}, **kw)
    return await asyncio.wait_for(arrived, _SECONDS)


async def _open_channel(hops: int) -> Channel:
    """A channel on a connection of its own, with the exchanges and queues of all hops."""
    opened: _FUTURE = asyncio.get_running_loop().create_future()

    def failed(_connection: AsyncioConnection, error: str | Exception) -> None:
        opened.set_exception(ConnectionError(str(error)))

    url = pika.URLParameters(os.environ["BENCH_AMQP_URL"])
    AsyncioConnection(url, on_open_callback=opened.set_result, on_open_error_callback=failed)
    connection = await asyncio.wait_for(opened, _SECONDS)
    channel: Channel = await _call(connection.channel, reply="on_open_callback")
    for number in range(1, hops + 1):
        name = _queue_name(hops, number)
        await _call(channel.exchange_declare, name, exchange_type="direct", durable=True)
        await _call(channel.queue_declare, name, durable=True)
        await _call(channel.queue_bind, name, name, routing_key=_KEY)
    await _call(channel.basic_qos, prefetch_count=_PREFETCH)
    return channel


class _Hop:
    """Takes from its queue and passes on; acknowledges what is confirmed."""

    def __init__(self, channel: Channel, hops: int, number: int) -> None:
        self._channel = channel
        self._next = _queue_name(hops, number + 1)
        self._is_last = number == hops
        self._published = 0
        self._oldest = 1
        self._unconfirmed: dict[int, int] = {}  # tag of the publish -> tag of the delivery

    def on_delivery(
        self, channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        self._published += 1
        self._unconfirmed[self._published] = method.delivery_tag
        if self._is_last:
            answer = pika.BasicProperties(delivery_mode=1, correlation_id=properties.correlation_id)
            channel.basic_publish("", str(properties.reply_to), body, answer, mandatory=True)
        else:
            channel.basic_publish(self._next, _KEY, body, properties, mandatory=True)

    def on_confirm(self, frame: Any) -> None:
        last = frame.method.delivery_tag
        first = self._oldest if frame.method.multiple else last
        for tag in range(first, last + 1):
            delivery = self._unconfirmed.pop(tag, None)
            if delivery is not None:
                self._channel.basic_ack(delivery)
        if frame.method.multiple:
            self._oldest = last + 1


class _Driver:
    """Sends jobs down all hops; many may be in flight."""

    def __init__(self, channel: Channel, hops: int) -> None:
        self._channel = channel
        self._first = _queue_name(hops, 1)
        self._reply_queue = _queue_name(hops, hops + 1)
        self._count = 0
        self._answers: dict[str, _FUTURE] = {}
        self._body = encode(make_job("bare"))  # as many bytes as Canopy sends

    async def start(self) -> None:
        await _call(self._channel.confirm_delivery, lambda _frame: None)
        await _call(self._channel.queue_declare, self._reply_queue, exclusive=True)
        await _call(self._channel.basic_consume, self._reply_queue, self._on_reply)

    async def request(self) -> None:
        self._count += 1
        number = str(self._count)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        properties = pika.BasicProperties(
            delivery_mode=2, reply_to=self._reply_queue, correlation_id=number
        )
        self._channel.basic_publish(self._first, _KEY, self._body, properties, mandatory=True)
        async with asyncio.timeout(_SECONDS):
            await answer

    def _on_reply(
        self, channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        channel.basic_ack(method.delivery_tag)
        answer = self._answers.pop(str(properties.correlation_id))
        if not answer.done():
            answer.set_result(body)


async def _serve_hop(hops: int, number: int) -> None:
    channel = await _open_channel(hops)
    hop = _Hop(channel, hops, number)
    await _call(channel.confirm_delivery, hop.on_confirm)
    await _call(channel.basic_consume, _queue_name(hops, number), hop.on_delivery)
    await asyncio.Event().wait()


async def _drive(hops: int) -> None:
    driver = _Driver(await _open_channel(hops), hops)
    await driver.start()
    await loop.serve(driver.request)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    asyncio.run(_drive(*numbers) if len(numbers) == 1 else _serve_hop(*numbers))
