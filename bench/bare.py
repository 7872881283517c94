"""The yardstick: the same hops as a Canopy request, through pika alone and with no Canopy code in the way.

    client -> exchange -> queue -> process -> exchange -> queue -> process -> reply queue -> client

As in Canopy: durable exchanges and queues, persistent jobs, every publish mandatory and confirmed, a delivery
acknowledged once its forward is confirmed, answers transient. `python -m bench.bare HOPS NUMBER` is one hop.
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

_URL = (
    "BENCH_AMQP_URL"  # in the environment, because a command line shows the password to everybody
)
_KEY = "next"
_PREFETCH = 256
_SECONDS = 10.0  # for any reply of the broker, and for one round trip


def _place(hops: int, number: int) -> str:
    """The exchange that leads to a hop, and its queue; the number after the last hop is the reply queue's."""
    return f"bench.{hops}.{number}"


async def _called(
    method: Callable[..., Any], /, *words: Any, answer_to: str = "callback", **options: Any
) -> Any:
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
        on_open_error_callback=lambda _connection, error: opened.set_exception(
            ConnectionError(str(error))
        ),
    )
    connection = await asyncio.wait_for(opened, _SECONDS)
    channel: Channel = await _called(connection.channel, answer_to="on_open_callback")
    return channel


class _Hop:
    """Takes from its queue and hands on; acknowledges what is confirmed."""

    def __init__(self, channel: Channel, hops: int, number: int) -> None:
        self._channel = channel
        self._queue = _place(hops, number)
        self._next = None if number == hops else _place(hops, number + 1)
        self._published = 0
        self._oldest = 1
        self._unconfirmed: dict[int, int] = {}  # tag of the publish -> tag of the delivery

    async def serve(self) -> None:
        """Returns once deliveries come."""
        await _called(self._channel.confirm_delivery, self._on_confirm)
        await _called(self._channel.basic_qos, prefetch_count=_PREFETCH)
        await _called(self._channel.basic_consume, self._queue, self._on_delivery)

    def _on_delivery(
        self, _channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        self._published += 1
        self._unconfirmed[self._published] = method.delivery_tag
        if self._next is not None:
            self._channel.basic_publish(self._next, _KEY, body, properties, mandatory=True)
        else:
            answer = pika.BasicProperties(delivery_mode=1, correlation_id=properties.correlation_id)
            self._channel.basic_publish("", str(properties.reply_to), body, answer, mandatory=True)

    def _on_confirm(self, frame: Any) -> None:
        last = frame.method.delivery_tag
        for tag in range(self._oldest, last + 1) if frame.method.multiple else (last,):
            if (delivery := self._unconfirmed.pop(tag, None)) is not None:
                self._channel.basic_ack(delivery)
        if frame.method.multiple:
            self._oldest = last + 1


class BareTree:
    """The hops, ready to be asked."""

    def __init__(self, channel: Channel, hops: int) -> None:
        self._channel = channel
        self._places = [_place(hops, number) for number in range(1, hops + 1)]
        self._reply = _place(hops, hops + 1)
        self._asked = 0
        self._open: dict[str, asyncio.Future[bytes]] = {}
        self.pids: list[int] = []  # of the hops

    async def round_trip(self, body: bytes) -> bytes:
        """Down all hops and back; many may be under way. Raises TimeoutError."""
        self._asked += 1
        number = str(self._asked)
        self._open[number] = answer = asyncio.get_running_loop().create_future()
        job = pika.BasicProperties(delivery_mode=2, reply_to=self._reply, correlation_id=number)
        self._channel.basic_publish(self._places[0], _KEY, body, job, mandatory=True)
        async with asyncio.timeout(_SECONDS):
            return await answer

    async def prepare(self) -> None:
        """Declares the queues and edges, and listens for answers."""
        channel = self._channel
        await _called(channel.confirm_delivery, lambda _frame: None)
        for place in self._places:
            await _called(channel.exchange_declare, place, exchange_type="direct", durable=True)
            await _called(channel.queue_declare, place, durable=True)
            await _called(channel.queue_bind, place, place, routing_key=_KEY)
        await _called(channel.queue_declare, self._reply, exclusive=True)
        await _called(channel.basic_qos, prefetch_count=_PREFETCH)
        await _called(channel.basic_consume, self._reply, self._on_reply)

    async def remove(self) -> None:
        """Leaves nothing in the broker."""
        for place in self._places:
            await _called(self._channel.queue_delete, place)
            await _called(self._channel.exchange_delete, place)
        self._channel.connection.close()

    def _on_reply(
        self, channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        channel.basic_ack(method.delivery_tag)
        answer = self._open.pop(str(properties.correlation_id), None)
        if answer is not None and not answer.done():
            answer.set_result(body)


@contextlib.asynccontextmanager
async def running(url: str, hops: int = 2) -> AsyncIterator[BareTree]:
    """The queues and a process a hop, for as long as the block runs. `url`: a user who may declare `bench.*`."""
    tree = BareTree(await _open_channel(url), hops)
    await tree.prepare()
    processes = []
    try:
        for number in range(1, hops + 1):
            processes.append(await _start(url, hops, number))
        tree.pids = [process.pid for process in processes]
        yield tree
    finally:
        for process in processes:
            process.terminate()
            await process.wait()
        await tree.remove()


async def _start(url: str, hops: int, number: int) -> asyncio.subprocess.Process:
    """One hop, serving. Raises ConnectionError if it ends at once."""
    hop = await asyncio.create_subprocess_exec(
        *module_command("bench.bare", str(hops), str(number)),
        env={**module_environment(), _URL: url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the benchmark, which ends us
    )
    assert hop.stdout is not None  # noqa: S101 - PIPE was asked for
    if not await asyncio.wait_for(hop.stdout.readline(), _SECONDS):
        raise ConnectionError("a hop of the bare AMQP path did not start")
    return hop


async def _hop(hops: int, number: int) -> None:
    """Serves until the connection ends, which SIGTERM's default and the broker's end both do."""
    channel = await _open_channel(os.environ[_URL])
    closed = asyncio.Event()
    channel.add_on_close_callback(lambda *_: closed.set())
    await _Hop(channel, hops, number).serve()
    print("ready", flush=True)
    await closed.wait()


if __name__ == "__main__":
    asyncio.run(_hop(*map(int, sys.argv[1:])))
