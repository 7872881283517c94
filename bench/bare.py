"""The yardstick: the same hops as a Canopy request, through pika alone and with no Canopy code in the way.

    client -> exchange -> queue A -> process -> exchange -> queue B -> process -> reply queue -> client

As in Canopy: durable exchanges and queues, persistent jobs, every publish mandatory and confirmed, a delivery
acknowledged once its forward is confirmed, answers transient. `python -m bench.bare QUEUE EXCHANGE KEY` is one hop.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel

from cli.home import module_command, module_environment

_URL = "BENCH_AMQP_URL"  # in the environment, because a command line shows the password to everybody
_ENTRANCE, _MIDDLE, _QUEUE_A, _QUEUE_B, _REPLY = (f"bench.{name}" for name in ("entrance", "middle", "a", "b", "reply"))
_JOB = pika.BasicProperties(delivery_mode=2, reply_to=_REPLY)
_ANSWER = pika.BasicProperties(delivery_mode=1)
_PREFETCH = 256
_SECONDS = 10.0  # for any reply of the broker, and for one round trip


async def _called(method: Callable[..., Any], /, *words: Any, answer_to: str = "callback", **options: Any) -> Any:
    """Awaits what a pika method hands to its callback."""
    arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    method(*words, **{answer_to: arrived.set_result}, **options)
    return await asyncio.wait_for(arrived, _SECONDS)


async def _open_channel(url: str) -> Channel:
    """A confirming channel on a connection of its own. Raises the connection's error."""
    opened: asyncio.Future[AsyncioConnection] = asyncio.get_running_loop().create_future()
    AsyncioConnection(
        pika.URLParameters(url),
        on_open_callback=opened.set_result,
        on_open_error_callback=lambda _connection, error: opened.set_exception(ConnectionError(str(error))),
    )
    connection = await asyncio.wait_for(opened, _SECONDS)
    channel: Channel = await _called(connection.channel, answer_to="on_open_callback")
    return channel


class _Hop:
    """Takes from one queue and hands on; acknowledges what is confirmed."""

    def __init__(self, channel: Channel, exchange: str, key: str) -> None:
        self._channel = channel
        self._exchange = exchange
        self._key = key
        self._published = 0
        self._oldest = 1
        self._unconfirmed: dict[int, int] = {}  # tag of the publish -> tag of the delivery

    async def serve(self, queue: str) -> None:
        """Returns once deliveries come."""
        await _called(self._channel.confirm_delivery, self._on_confirm)
        await _called(self._channel.basic_qos, prefetch_count=_PREFETCH)
        await _called(self._channel.basic_consume, queue, self._on_delivery)

    def _on_delivery(self, _channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        self._published += 1
        self._unconfirmed[self._published] = method.delivery_tag
        if self._exchange:
            self._channel.basic_publish(self._exchange, self._key, body, properties, mandatory=True)
        else:
            self._channel.basic_publish("", str(properties.reply_to), body, _ANSWER, mandatory=True)

    def _on_confirm(self, frame: Any) -> None:
        last = frame.method.delivery_tag
        for tag in range(self._oldest, last + 1) if frame.method.multiple else (last,):
            if (delivery := self._unconfirmed.pop(tag, None)) is not None:
                self._channel.basic_ack(delivery)
        if frame.method.multiple:
            self._oldest = last + 1


class BareTree:
    """The hops, ready to be asked."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._reply: asyncio.Future[bytes] | None = None
        self.pids: list[int] = []  # of the hops

    async def round_trip(self, body: bytes) -> bytes:
        """Down two hops and back. One at a time. Raises TimeoutError."""
        self._reply = asyncio.get_running_loop().create_future()
        self._channel.basic_publish(_ENTRANCE, "model", body, _JOB, mandatory=True)
        return await asyncio.wait_for(self._reply, _SECONDS)

    async def prepare(self) -> None:
        """Declares the queues and edges, and listens for answers."""
        channel = self._channel
        await _called(channel.confirm_delivery, lambda _frame: None)
        for exchange in (_ENTRANCE, _MIDDLE):
            await _called(channel.exchange_declare, exchange, exchange_type="direct", durable=True)
        for queue in (_QUEUE_A, _QUEUE_B):
            await _called(channel.queue_declare, queue, durable=True)
        await _called(channel.queue_declare, _REPLY, exclusive=True)
        await _called(channel.queue_bind, _QUEUE_A, _ENTRANCE, routing_key="model")
        await _called(channel.queue_bind, _QUEUE_B, _MIDDLE, routing_key="child")
        await _called(channel.basic_qos, prefetch_count=_PREFETCH)
        await _called(channel.basic_consume, _REPLY, self._on_reply)

    async def remove(self) -> None:
        """Leaves nothing in the broker."""
        for queue in (_QUEUE_A, _QUEUE_B):
            await _called(self._channel.queue_delete, queue)
        for exchange in (_ENTRANCE, _MIDDLE):
            await _called(self._channel.exchange_delete, exchange)
        self._channel.connection.close()

    def _on_reply(self, channel: Channel, method: Any, _properties: object, body: bytes) -> None:
        channel.basic_ack(method.delivery_tag)
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(body)


@contextlib.asynccontextmanager
async def running(url: str) -> AsyncIterator[BareTree]:
    """The queues and both hop processes, for as long as the block runs. `url`: a user who may declare `bench.*`."""
    tree = BareTree(await _open_channel(url))
    await tree.prepare()
    hops = [
        await _start(url, _QUEUE_A, _MIDDLE, "child"),
        await _start(url, _QUEUE_B, "", ""),
    ]
    tree.pids = [hop.pid for hop in hops]
    try:
        yield tree
    finally:
        for hop in hops:
            hop.terminate()
            await hop.wait()
        await tree.remove()


async def _start(url: str, *words: str) -> asyncio.subprocess.Process:
    """One hop, serving. Raises ConnectionError if it ends at once."""
    hop = await asyncio.create_subprocess_exec(
        *module_command("bench.bare", *words),
        env={**module_environment(), _URL: url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the benchmark, which ends us
    )
    assert hop.stdout is not None  # noqa: S101 - PIPE was asked for
    if not await asyncio.wait_for(hop.stdout.readline(), _SECONDS):
        raise ConnectionError("a hop of the bare AMQP path did not start")
    return hop


async def _hop(queue: str, exchange: str, key: str) -> None:
    """Serves until the connection ends, which SIGTERM's default and the broker's end both do."""
    channel = await _open_channel(os.environ[_URL])
    closed = asyncio.Event()
    channel.add_on_close_callback(lambda *_: closed.set())
    await _Hop(channel, exchange, key).serve(queue)
    print("ready", flush=True)
    await closed.wait()


if __name__ == "__main__":
    asyncio.run(_hop(*sys.argv[1:]))
