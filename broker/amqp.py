"""A session on RabbitMQ through pika's asyncio adapter: two connections, one only to publish.

A memory or disk alarm blocks a connection that publishes; acknowledgements and heartbeats of the
other one keep flowing. `channels.py` has the parts.
"""

import asyncio
import functools
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

import pika
import pika.exceptions
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel

from broker.addresses import Address, addresses
from broker.channels import Acknowledger, OpenChannel, Publisher
from broker.connections import (
    CONNECT_SECONDS,
    close_connections,
    connect,
    translate,
    virtual_host,
)
from broker.errors import (
    BadCertificate,
    BrokerError,
    ConnectionLost,
    NotFound,
    PreconditionFailed,
    QueueLocked,
)
from broker.routing import GUARDED, Bound
from broker.session import BROKER_EVENTS, Delivery, DeliveryHandler, ExchangeKind, JoinedNode
from topology import names
from topology.prefix import Prefix

ADDRESS_SECONDS = 3.0  # for each address at least, however many there are
CHECK_SECONDS = 5.0  # between two checks that the exclusive queues still exist

# A quorum queue drops a message that was redelivered more often than this. RabbitMQ 4 defaults to
# 20, and its "no limit" (-1) means 0 to RabbitMQ 3. A number that is never reached means the same
# to both, survives an upgrade, and makes the queue requeue messages at their old place.
DELIVERY_LIMIT = 1_000_000

log = logging.getLogger(__name__)

EVENT_NAMES = ("name", "source_name", "destination_name")  # headers of the broker's events


class ConnectionPair:
    """A connection to consume and one to publish, on the same broker: they are lost together."""

    def __init__(self, consuming: AsyncioConnection, publishing: AsyncioConnection) -> None:
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        self.consuming = consuming
        self.publishing = publishing
        self.blocking = asyncio.Event()
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._on_lost: list[Callable[[BrokerError], None]] = []
        for connection in (consuming, publishing):
            connection.add_on_close_callback(self._on_closed)
        publishing.add_on_connection_blocked_callback(self._on_blocked)
        publishing.add_on_connection_unblocked_callback(self._on_unblocked)

    @classmethod
    async def open(cls, address: Address, name: str) -> "ConnectionPair":
        """Raises ConnectionLost, AccessRefused, BadCertificate or BadAddress."""
        consuming = await connect(address, name, publishes=False)
        try:
            publishing = await connect(address, f"{name} (publish)", publishes=True)
        except BaseException:
            await close_connections([consuming])
            raise
        return cls(consuming, publishing)

    def when_lost(self, callback: Callable[[BrokerError], None]) -> None:
        """Has `callback` called with the reason, in the moment of the loss."""
        self._on_lost.append(callback)

    def lose(self, reason: BrokerError) -> None:
        """Closes both: half a session is harder to reason about than none."""
        if self.closed.done():
            return
        self.closed.set_result(reason)
        for callback in self._on_lost:
            callback(reason)
        for connection in (self.consuming, self.publishing):
            if connection.is_open:
                connection.close()

    async def close(self) -> None:
        """Closes both, and returns when they are closed, or soon anyway."""
        await close_connections([self.consuming, self.publishing])
        self.lose(ConnectionLost("the session was closed"))

    def _on_closed(self, _connection: object, error: BaseException) -> None:
        self.lose(translate(error))

    def _on_blocked(self, *_: object) -> None:
        self.blocking.set()
        self.flowing.clear()

    def _on_unblocked(self, *_: object) -> None:
        self.blocking.clear()
        self.flowing.set()


def _by_way(address: Address) -> bool:
    """Tunnels are the last resort."""
    return address.tunnelled


def _together(failures: list[BrokerError]) -> BrokerError:
    """What was wrong with each address, as one error."""
    reason = "the broker is not reached: " + "; ".join(map(str, failures))
    for failure in failures:
        if not isinstance(failure, BadCertificate):
            return ConnectionLost(reason)
    return BadCertificate(reason)


class AmqpSession:
    """See broker.session.Session."""

    def __init__(
        self,
        connections: ConnectionPair,
        consuming: OpenChannel,
        publishing: OpenChannel,
        publisher: Publisher,
        queue_type: str,
        prefix: Prefix,
        name: str,
        joined: JoinedNode | None,
    ) -> None:
        self.closed = connections.closed
        self.joined = joined
        self.deletes = queue_type != "quorum"  # a quorum queue is deleted even if not empty
        self.blocking = connections.blocking
        self.flowing = connections.flowing
        self._connections = connections
        self._consuming = consuming
        self._acknowledger = Acknowledger(consuming.raw)
        self._publisher = publisher
        self._queue_type = queue_type
        self._prefix = prefix
        self._vhost = virtual_host(connections.consuming)
        self._requests: OpenChannel | None = None  # for calls whose refusal closes the channel
        self._request_lock = asyncio.Lock()
        self._consume_lock = asyncio.Lock()
        self._exclusive: set[str] = set()
        self._bound = Bound()
        connections.when_lost(self._fail_publishes)
        consuming.raw.add_on_cancel_callback(self._on_consumer_cancelled)
        for channel in (consuming, publishing):
            channel.closed.add_done_callback(self._on_channel_closed)
        self._checking = asyncio.create_task(
            self._check_exclusive(), name=f"exclusive queues of {name}"
        )

    @classmethod
    async def open(
        cls,
        url: str,
        name: str,
        *,
        queue_type: str = "classic",
        joined: JoinedNode | None = None,
    ) -> "AmqpSession":
        """Connects to a random address in `url` (see broker.addresses) that answers.

        `name` is shown in RabbitMQ's list of connections. Durable queues are declared as
        `queue_type` (classic, or quorum on a cluster). Names get the prefix that is in the address
        (see topology.prefix). `joined`: whose user `url` names, if it is a joined node's. Raises
        ConnectionLost, AccessRefused, BadCertificate, or BadAddress if `url` is malformed.
        """
        candidates = addresses(url)
        random.shuffle(candidates)
        candidates.sort(key=_by_way)
        seconds = max(ADDRESS_SECONDS, CONNECT_SECONDS / len(candidates))
        failures: list[BrokerError] = []
        for candidate in candidates:
            try:
                return await cls._open_one(candidate, name, queue_type, seconds, joined)
            except (ConnectionLost, BadCertificate) as error:
                failures.append(error)
        raise _together(failures)

    @classmethod
    async def _open_one(
        cls,
        address: Address,
        name: str,
        queue_type: str,
        seconds: float,
        joined: JoinedNode | None,
    ) -> "AmqpSession":
        prefix = Prefix(address.prefix)
        try:
            async with asyncio.timeout(seconds):
                connections = await ConnectionPair.open(address, name)
                try:
                    consuming = await OpenChannel.open(connections.consuming, connections.closed)
                    publishing = await OpenChannel.open(connections.publishing, connections.closed)
                    user = prefix.outside(joined.user) if joined is not None else None
                    publisher = Publisher(publishing, connections.lose, user)
                    await publisher.start()
                except BaseException:
                    await connections.close()
                    raise
        except TimeoutError as error:
            raise ConnectionLost(f"{address.place} does not answer") from error
        return cls(connections, consuming, publishing, publisher, queue_type, prefix, name, joined)

    @property
    def blocked(self) -> bool:
        """True while the broker takes no publishes (memory or disk alarm)."""
        return self.blocking.is_set()

    async def declare_exchange(self, name: str, kind: ExchangeKind) -> None:
        await self._request("exchange_declare", exchange=name, exchange_type=kind, durable=True)

    async def declare_queue(self, name: str, *, exclusive: bool = False) -> None:
        if exclusive:  # always classic: there is no point in replicating it
            await self._request("queue_declare", queue=name, exclusive=True)
            self._exclusive.add(name)
            return
        arguments: dict[str, object] = {"x-queue-type": self._queue_type}
        if self._queue_type == "quorum":
            arguments["x-delivery-limit"] = DELIVERY_LIMIT
        try:
            await self._request("queue_declare", queue=name, durable=True, arguments=arguments)
        except PreconditionFailed as error:
            queue = self._prefix.outside(name)
            raise BrokerError(
                f"queue {queue} exists, but not as CANOPY_QUEUE_TYPE={self._queue_type} makes it: "
                "set the former type again, or stop Canopy and delete its queues "
                f"(rabbitmqctl delete_queue {queue}). {error}"
            ) from error

    async def bind(self, queue: str, exchange: str, key: str) -> None:
        await self._request("queue_bind", queue=queue, exchange=exchange, routing_key=key)
        self._bound.add(queue, exchange, key)

    async def unbind(self, queue: str, exchange: str, key: str) -> None:
        await self._request("queue_unbind", queue=queue, exchange=exchange, routing_key=key)
        self._bound.remove(queue, exchange, key)

    async def delete_queue(self, name: str) -> bool:
        if not self.deletes:
            return False
        try:
            await self._request("queue_delete", queue=name, if_empty=True, if_unused=True)
        except NotFound:
            return True
        except PreconditionFailed:  # not empty, or consumed
            return False
        return True

    async def delete_exchange(self, name: str, *, if_unused: bool = False) -> bool:
        try:
            await self._request("exchange_delete", exchange=name, if_unused=if_unused)
        except NotFound:
            return True
        except PreconditionFailed:
            return False
        return True

    async def depth(self, queue: str) -> int | None:
        try:
            answer = await self._request("queue_declare", queue=queue, passive=True)
        except (NotFound, QueueLocked):
            return None
        return int(answer.method.message_count)

    async def exists(self, queue: str) -> bool:
        try:
            await self._request("queue_declare", queue=queue, passive=True)
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
            exchange = self._prefix.inside(method.exchange)
            if exchange in GUARDED and not self._bound.expects(queue, exchange, method.routing_key):
                log.warning("message with further keys from %s to %s dropped", exchange, queue)
                self._acknowledger.settle(method.delivery_tag, True)
                return
            handler(
                Delivery(
                    body=body,
                    exchange=exchange,
                    routing_key=method.routing_key,
                    headers=self._headers(method.exchange, properties.headers or {}),
                    redelivered=method.redelivered,
                    settle=functools.partial(self._acknowledger.settle, method.delivery_tag),
                    sender=self._prefix.inside(properties.user_id or ""),
                )
            )

        # consuming a missing queue would close the main channel, so check on the other one
        await self._request("queue_declare", queue=queue, passive=True)
        async with self._consume_lock:  # basic_qos applies to the consumers started after it
            await self._consuming.call("basic_qos", prefetch_count=prefetch)
            answer = await self._consuming.call(
                "basic_consume", queue=self._prefix.outside(queue), on_message_callback=delivered
            )
        return str(answer.method.consumer_tag)

    async def cancel(self, tag: str) -> None:
        if tag in self._consuming.raw.consumer_tags:
            await self._consuming.call("basic_cancel", consumer_tag=tag)

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        *,
        persistent: bool = False,
        headers: Mapping[str, object] | None = None,
    ) -> asyncio.Future[bool]:
        if exchange:
            exchange = self._prefix.outside(exchange)
        elif self.joined is not None:
            exchange = self._prefix.outside(names.JOINED_EXCHANGE)
            key = names.joined_key(key, self.joined.model)
        else:  # the default exchange: the key is a queue's name
            key = self._prefix.outside(key)
        return self._publisher.publish(exchange, key, body, persistent, headers)

    async def close(self) -> None:
        self._checking.cancel()
        await asyncio.gather(self._checking, return_exceptions=True)
        await self._connections.close()

    async def _request(self, method: str, /, **kwargs: Any) -> Any:
        """A call that the broker may refuse, on a channel that is replaced when it does."""
        async with self._request_lock:
            if self._requests is None or self._requests.closed.done():
                self._requests = await OpenChannel.open(self._connections.consuming, self.closed)
            for argument in ("queue", "exchange"):
                if argument in kwargs:
                    kwargs[argument] = self._prefix.outside(kwargs[argument])
            return await self._requests.call(method, **kwargs)

    def _headers(self, exchange: str, headers: Mapping[str, object]) -> Mapping[str, object]:
        """A delivery's headers; those of the broker's own events name objects.

        They are of all its virtual hosts. What is not this instance's has the name "".
        """
        if exchange != BROKER_EVENTS:
            return headers
        here = headers.get("vhost", self._vhost) == self._vhost
        translated = dict(headers)
        for header in EVENT_NAMES:
            if header in translated:
                translated[header] = self._prefix.inside(str(headers[header])) if here else ""
        return translated

    async def _check_exclusive(self) -> None:
        """Ends the session when the broker has forgotten one of its exclusive queues.

        After a network partition a cluster may lose a queue without telling its owner, which would
        wait for ever (RabbitMQ 4.0 and 4.1 with Khepri).
        """
        while not self.closed.done():
            await asyncio.sleep(CHECK_SECONDS)
            for queue in tuple(self._exclusive):
                try:
                    await self._request("queue_declare", queue=queue, passive=True)
                except (NotFound, QueueLocked):
                    self._connections.lose(BrokerError(f"the broker has forgotten queue {queue}"))
                except BrokerError:
                    break  # no answer: try again later

    def _on_channel_closed(self, closed: asyncio.Future[BrokerError]) -> None:
        self._connections.lose(closed.result())

    def _on_consumer_cancelled(self, frame: Any) -> None:
        tag = frame.method.consumer_tag
        self._connections.lose(BrokerError(f"the broker ended consumer {tag}: its queue is gone"))

    def _fail_publishes(self, reason: BrokerError) -> None:
        self._publisher.fail(ConnectionLost(str(reason)))
