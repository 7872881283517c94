"""A session on RabbitMQ through pika's asyncio adapter: two connections, one to publish and one for all else.

They are apart because a memory or disk alarm blocks a connection that publishes: acknowledgements and heartbeats
of the other one keep flowing. `channels.py` has what they are made of.
"""

import asyncio
import functools
import random
from collections.abc import Mapping
from typing import Any

import pika
import pika.exceptions
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel

from broker.addresses import addresses
from broker.channels import (
    CONNECT_SECONDS,
    Acknowledger,
    OpenChannel,
    PreconditionFailed,
    Publisher,
    connect,
    translate,
)
from broker.session import (
    BrokerError,
    ConnectionLost,
    Delivery,
    DeliveryHandler,
    ExchangeKind,
    NotFound,
    QueueLocked,
)

ADDRESS_SECONDS = 3.0  # but for each at least this, however many there are
CHECK_SECONDS = 5.0  # how often a session looks whether its exclusive queues are still there

# A quorum queue drops a message that was delivered again more often than this. RabbitMQ 4 sets 20 where nothing is
# said, and its "no limit" (-1) means 0 to RabbitMQ 3. A number never reached means the same to both, survives an
# upgrade, and lets the queue put back what is requeued at its old place instead of at its end.
DELIVERY_LIMIT = 1_000_000


class AmqpSession:
    """See broker.session.Session."""

    def __init__(self, connections: list[AsyncioConnection], queue_type: str) -> None:
        self._queue_type = queue_type
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        self.deletes = queue_type != "quorum"  # those cannot refuse it when a message has come
        self.blocking = asyncio.Event()
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._connections = connections
        self._main: OpenChannel  # consumes and acknowledges
        self._acknowledger: Acknowledger
        self._asking: OpenChannel | None = (
            None  # all that the broker may refuse, which closes the channel
        )
        self._publisher: Publisher
        self._exclusive: set[str] = set()
        self._checking: asyncio.Task[None] | None = None
        self._one_question = asyncio.Lock()
        self._one_consume = asyncio.Lock()

    @classmethod
    async def open(cls, url: str, name: str, *, queue_type: str = "classic") -> "AmqpSession":
        """Connects twice. `name` is shown in RabbitMQ's list of connections. Durable queues are declared as
        `queue_type` (classic, or quorum on a cluster). Of several addresses in `url` (see broker.addresses) a random
        one is used that answers. Raises ConnectionLost, AccessRefused, or BrokerError if `url` is malformed.
        """
        candidates = addresses(url)
        random.shuffle(candidates)
        seconds = max(ADDRESS_SECONDS, CONNECT_SECONDS / len(candidates))
        lost = ConnectionLost("no address")
        for candidate in candidates:
            try:
                return await cls._open_one(candidate, name, queue_type, seconds)
            except ConnectionLost as error:
                lost = error
        raise lost

    @classmethod
    async def _open_one(cls, url: str, name: str, queue_type: str, seconds: float) -> "AmqpSession":
        """Both connections on one broker: a broker that dies takes all of a session, or nothing."""
        connections: list[AsyncioConnection] = []
        self = cls(connections, queue_type)
        try:
            async with asyncio.timeout(seconds):
                connections.append(await connect(url, name))
                connections.append(await connect(url, f"{name} (publish)"))
                for connection in connections:
                    connection.add_on_close_callback(self._on_connection_closed)
                publish = connections[1]
                publish.add_on_connection_blocked_callback(lambda *_: self._alarm(True))
                publish.add_on_connection_unblocked_callback(lambda *_: self._alarm(False))
                self._main = await OpenChannel.open(connections[0], self.closed)
                self._acknowledger = Acknowledger(self._main.raw)
                publishing = await OpenChannel.open(publish, self.closed)
                self._publisher = Publisher(publishing, self._lost)
                await self._publisher.start()
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError):
                raise ConnectionLost("the broker does not answer") from error
            raise
        self._main.raw.add_on_cancel_callback(self._on_consumer_cancelled)
        for channel in (self._main, publishing):
            channel.closed.add_done_callback(lambda closed: self._lost(closed.result()))
        self._checking = asyncio.create_task(
            self._check_exclusive(), name=f"exclusive queues of {name}"
        )
        return self

    @property
    def blocked(self) -> bool:
        """The broker takes no publishes now (memory or disk alarm)."""
        return self.blocking.is_set()

    async def declare_exchange(self, name: str, kind: ExchangeKind) -> None:
        await self._ask("exchange_declare", exchange=name, exchange_type=kind, durable=True)

    async def declare_queue(self, name: str, *, exclusive: bool = False) -> None:
        if exclusive:  # always classic: an exclusive queue dies with its connection, there is nothing to replicate
            await self._ask("queue_declare", queue=name, exclusive=True)
            self._exclusive.add(name)
            return
        arguments: dict[str, object] = {"x-queue-type": self._queue_type}
        if self._queue_type == "quorum":
            arguments["x-delivery-limit"] = DELIVERY_LIMIT
        try:
            await self._ask("queue_declare", queue=name, durable=True, arguments=arguments)
        except PreconditionFailed as error:
            raise BrokerError(
                f"queue {name} exists, but not as CANOPY_QUEUE_TYPE={self._queue_type} makes it: set the former type "
                f"again, or stop Canopy and delete its queues (rabbitmqctl delete_queue {name}). {error}"
            ) from error

    async def bind(self, queue: str, exchange: str, key: str) -> None:
        await self._ask("queue_bind", queue=queue, exchange=exchange, routing_key=key)

    async def unbind(self, queue: str, exchange: str, key: str) -> None:
        await self._ask("queue_unbind", queue=queue, exchange=exchange, routing_key=key)

    async def delete_queue(self, name: str) -> bool:
        if not self.deletes:
            return False
        try:
            await self._ask("queue_delete", queue=name, if_empty=True, if_unused=True)
        except NotFound:
            return True
        except PreconditionFailed:  # not empty, or consumed
            return False
        return True

    async def delete_exchange(self, name: str, *, if_unused: bool = False) -> bool:
        try:
            await self._ask("exchange_delete", exchange=name, if_unused=if_unused)
        except NotFound:
            return True
        except PreconditionFailed:
            return False
        return True

    async def depth(self, queue: str) -> int | None:
        try:
            answer = await self._ask("queue_declare", queue=queue, passive=True)
        except (NotFound, QueueLocked):
            return None
        return int(answer.method.message_count)

    async def exists(self, queue: str) -> bool:
        try:
            await self._ask("queue_declare", queue=queue, passive=True)
        except NotFound:
            return False
        except QueueLocked:
            return True
        return True

    async def consume(self, queue: str, handler: DeliveryHandler, *, prefetch: int) -> str:
        def delivered(
            _channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes
        ) -> None:
            self._acknowledger.delivered(method.delivery_tag)
            handler(
                Delivery(
                    body=body,
                    exchange=method.exchange,
                    routing_key=method.routing_key,
                    headers=properties.headers or {},
                    redelivered=method.redelivered,
                    settle=functools.partial(self._acknowledger.settle, method.delivery_tag),
                )
            )

        # consuming from a missing queue would close the consuming channel, so ask elsewhere first
        await self._ask("queue_declare", queue=queue, passive=True)
        async with self._one_consume:  # the limit applies to the consumers started after it
            await self._main.call("basic_qos", prefetch_count=prefetch)
            answer = await self._main.call(
                "basic_consume", queue=queue, on_message_callback=delivered
            )
        return str(answer.method.consumer_tag)

    async def cancel(self, tag: str) -> None:
        if tag in self._main.raw.consumer_tags:
            await self._main.call("basic_cancel", consumer_tag=tag)

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        *,
        persistent: bool = False,
        headers: Mapping[str, object] | None = None,
    ) -> asyncio.Future[bool]:
        return self._publisher.publish(exchange, key, body, persistent, headers)

    async def close(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
        gone = []
        for connection in self._connections:
            if connection.is_closed:
                continue
            closed = asyncio.get_running_loop().create_future()
            connection.add_on_close_callback(
                lambda *_, closed=closed: closed.done() or closed.set_result(None)
            )
            gone.append(closed)
            if connection.is_open:
                connection.close()
        if gone:
            await asyncio.wait(gone, timeout=2)
        self._lost(ConnectionLost("the session was closed"))

    async def _ask(self, method: str, /, **kwargs: Any) -> Any:
        """A call that may be refused, on a channel of its own that is replaced when that happens."""
        async with self._one_question:
            if self._asking is None or self._asking.closed.done():
                self._asking = await OpenChannel.open(self._connections[0], self.closed)
            return await self._asking.call(method, **kwargs)

    async def _check_exclusive(self) -> None:
        """A cluster that was divided may forget a queue and go on as if nothing were wrong for its owner: nothing would
        arrive any more, and nobody would say so (RabbitMQ 4.0 and 4.1 with Khepri).
        """
        while not self.closed.done():
            await asyncio.sleep(CHECK_SECONDS)
            for queue in tuple(self._exclusive):
                try:
                    await self._ask("queue_declare", queue=queue, passive=True)
                except (NotFound, QueueLocked):
                    self._lost(BrokerError(f"the broker has forgotten queue {queue}"))
                except BrokerError:
                    break  # it did not answer: asked again later

    def _alarm(self, on: bool) -> None:
        (self.blocking.set if on else self.blocking.clear)()
        (self.flowing.clear if on else self.flowing.set)()

    def _on_connection_closed(self, _connection: object, error: BaseException) -> None:
        self._lost(translate(error))

    def _on_consumer_cancelled(self, frame: Any) -> None:
        self._lost(
            BrokerError(f"the broker ended consumer {frame.method.consumer_tag}: its queue is gone")
        )

    def _lost(self, reason: BrokerError) -> None:
        """Ends the session as a whole: half a session is harder to reason about than none."""
        if self.closed.done():
            return
        self.closed.set_result(reason)
        if hasattr(self, "_publisher"):
            self._publisher.fail(ConnectionLost(str(reason)))
        for connection in self._connections:
            if connection.is_open:
                connection.close()
