"""An in-memory twin of the broker for unit tests: the same Session and promises, one event loop.

It has what Canopy relies on: direct, fanout and topic exchanges, mandatory publishes, prefetch,
exclusive queues that vanish with their session, redelivery in order, and the broker's own event
when a queue is deleted.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from broker.errors import BrokerError, ConnectionLost, NotFound, QueueLocked, Unsendable
from broker.limits import check_sendable
from broker.routing import matches
from broker.session import BROKER_EVENTS, Delivery, DeliveryHandler, ExchangeKind, JoinedNode
from topology.names import JOINED_EXCHANGE, is_amqp_name, joined_key


@dataclass(frozen=True, slots=True)
class _Message:
    order: int
    exchange: str
    key: str
    body: bytes
    headers: Mapping[str, object]
    sender: str = ""
    redelivered: bool = False


@dataclass(slots=True)
class _Consumer:
    tag: str
    session: "MemorySession"
    handler: DeliveryHandler
    prefetch: int
    unsettled: int = 0


@dataclass(slots=True)
class _Queue:
    owner: "MemorySession | None" = None
    ready: deque[_Message] = field(default_factory=deque)
    consumers: deque[_Consumer] = field(default_factory=deque)

    def consumer_with_room(self) -> _Consumer | None:
        for consumer in self.consumers:
            if consumer.unsettled < consumer.prefetch:
                return consumer
        return None


def _routes(kind: ExchangeKind, binding_key: str, key: str) -> bool:
    if kind == "fanout":
        return True
    if kind == "topic":
        return matches(binding_key, key)
    return binding_key == key


def _check_names(*names: str) -> None:
    """Raises Unsendable for a name that AMQP cannot carry."""
    for name in names:
        if not is_amqp_name(name):
            raise Unsendable("a name is longer than AMQP allows")


class MemoryBroker:
    """The state that sessions share."""

    def __init__(self) -> None:
        self.exchanges: dict[str, ExchangeKind] = {BROKER_EVENTS: "topic"}
        self.queues: dict[str, _Queue] = {}
        self.bindings: dict[tuple[str, str, str], None] = {}  # (exchange, key, queue), in order
        self._numbers = itertools.count(1)

    def session(self, joined: JoinedNode | None = None) -> "MemorySession":
        """A new connection to this broker."""
        return MemorySession(self, joined)

    def route(self, exchange: str, key: str) -> list[str]:
        """The queues a message with that key reaches."""
        if exchange == "":
            return [key] if key in self.queues else []
        kind = self.exchanges.get(exchange)
        if kind is None:
            raise NotFound(f"no exchange '{exchange}'")
        queues: dict[str, None] = {}
        for source, binding_key, queue in self.bindings:
            if source == exchange and _routes(kind, binding_key, key):
                queues[queue] = None
        return list(queues)

    def put(
        self,
        exchange: str,
        key: str,
        body: bytes,
        headers: Mapping[str, object] | None = None,
        sender: str = "",
    ) -> bool:
        """Publishes at once; False if no queue took it."""
        queues = self.route(exchange, key)
        for queue in queues:
            message = _Message(next(self._numbers), exchange, key, body, headers or {}, sender)
            self.queues[queue].ready.append(message)
            self._deliver(queue)
        return bool(queues)

    def delete_queue(self, name: str) -> None:
        """Deletes it with its bindings, and says so on the broker's event exchange."""
        if self.queues.pop(name, None) is None:
            return
        self.bindings = {binding: None for binding in self.bindings if binding[2] != name}
        self.put(BROKER_EVENTS, "queue.deleted", b"", {"name": name})

    def _deliver(self, name: str) -> None:
        """Hands ready messages to consumers with room, in turn."""
        queue = self.queues.get(name)
        while queue and queue.ready:
            consumer = queue.consumer_with_room()
            if consumer is None:
                return
            queue.consumers.rotate(-1)
            self._hand_over(name, consumer, queue.ready.popleft())

    def _hand_over(self, name: str, consumer: _Consumer, message: _Message) -> None:
        consumer.unsettled += 1

        def settle(done: bool) -> None:
            if consumer.session.unsettled.pop(message.order, None) is None:
                return
            consumer.unsettled -= 1
            if not done:
                self.give_back(name, message)
            self._deliver(name)

        delivery = Delivery(
            message.body,
            message.exchange,
            message.key,
            message.headers,
            message.redelivered,
            settle,
            message.sender,
        )
        consumer.session.unsettled[message.order] = (name, message)
        asyncio.get_running_loop().call_soon(consumer.handler, delivery)

    def give_back(self, name: str, message: _Message) -> None:
        """Puts a message back where it was."""
        queue = self.queues.get(name)
        if queue is None:
            return
        again = replace(message, redelivered=True)
        queue.ready = deque(sorted([*queue.ready, again], key=lambda message: message.order))
        asyncio.get_running_loop().call_soon(self._deliver, name)


class MemorySession:
    """See broker.session.Session."""

    def __init__(self, broker: MemoryBroker, joined: JoinedNode | None = None) -> None:
        self.broker = broker
        self.joined = joined
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        self.deletes = True
        self.blocking = asyncio.Event()
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.unsettled: dict[int, tuple[str, _Message]] = {}
        self._tags = itertools.count(1)

    @property
    def blocked(self) -> bool:
        return self.blocking.is_set()

    def alarm(self, on: bool) -> None:
        """A memory or disk alarm begins or ends. Publishes still go through, unlike in RabbitMQ."""
        if on:
            self.blocking.set()
            self.flowing.clear()
        else:
            self.blocking.clear()
            self.flowing.set()

    async def declare_exchange(self, name: str, kind: ExchangeKind) -> None:
        _check_names(name)
        self.broker.exchanges.setdefault(name, kind)

    async def declare_queue(self, name: str, *, exclusive: bool = False) -> None:
        self._check()
        _check_names(name)
        queue = self.broker.queues.get(name)
        if queue is None:
            self.broker.queues[name] = _Queue(owner=self if exclusive else None)
        elif queue.owner is not None and queue.owner is not self:
            raise QueueLocked(f"queue '{name}' belongs to another connection")

    async def bind(self, queue: str, exchange: str, key: str) -> None:
        _check_names(queue, exchange, key)
        if queue not in self.broker.queues or exchange not in self.broker.exchanges:
            raise NotFound(f"cannot bind '{queue}' to '{exchange}'")
        self.broker.bindings[(exchange, key, queue)] = None

    async def unbind(self, queue: str, exchange: str, key: str) -> None:
        self.broker.bindings.pop((exchange, key, queue), None)

    async def delete_queue(self, name: str) -> bool:
        queue = self.broker.queues.get(name)
        if queue is not None and (queue.ready or queue.consumers):
            return False
        self.broker.delete_queue(name)
        return True

    async def delete_exchange(self, name: str, *, if_unused: bool = False) -> bool:
        if if_unused and any(source == name for source, _, _ in self.broker.bindings):
            return False
        self.broker.exchanges.pop(name, None)
        self.broker.bindings = {
            binding: None for binding in self.broker.bindings if binding[0] != name
        }
        return True

    async def depth(self, queue: str) -> int | None:
        _check_names(queue)
        state = self.broker.queues.get(queue)
        if state is None or state.owner not in (None, self):
            return None
        return len(state.ready)

    async def exists(self, queue: str) -> bool:
        _check_names(queue)
        return queue in self.broker.queues

    async def consume(self, queue: str, handler: DeliveryHandler, *, prefetch: int) -> str:
        self._check()
        if queue not in self.broker.queues:
            raise NotFound(f"no queue '{queue}'")
        tag = f"{id(self)}-{next(self._tags)}"
        self.broker.queues[queue].consumers.append(_Consumer(tag, self, handler, prefetch))
        self.broker._deliver(queue)
        return tag

    async def cancel(self, tag: str) -> None:
        for queue in self.broker.queues.values():
            queue.consumers = deque(consumer for consumer in queue.consumers if consumer.tag != tag)
        await asyncio.sleep(0)  # deliveries that were made arrive first

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        *,
        persistent: bool = False,
        headers: Mapping[str, object] | None = None,
    ) -> asyncio.Future[bool]:
        outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        try:
            self._check()
            check_sendable(exchange, key, body, headers)
            sender = ""
            if self.joined is not None:
                sender = self.joined.user
                if not exchange:
                    exchange = JOINED_EXCHANGE
                    key = joined_key(key, self.joined.model)
            outcome.set_result(self.broker.put(exchange, key, body, headers, sender))
        except BrokerError as error:
            outcome.set_exception(error)
            outcome.exception()  # retrieved, so that nobody needs to wait for it
        return outcome

    async def close(self) -> None:
        self.lose(ConnectionLost("the session was closed"))

    def lose(self, reason: BrokerError) -> None:
        """Ends the session as a dying process would: what it had not settled is delivered again."""
        if self.closed.done():
            return
        self.closed.set_result(reason)
        for queue in self.broker.queues.values():
            queue.consumers = deque(
                consumer for consumer in queue.consumers if consumer.session is not self
            )
        for name, message in list(self.unsettled.values()):
            self.broker.give_back(name, message)
        self.unsettled.clear()
        for name, queue in list(self.broker.queues.items()):
            if queue.owner is self:
                self.broker.delete_queue(name)

    def _check(self) -> None:
        if self.closed.done():
            raise ConnectionLost("the session is closed")
