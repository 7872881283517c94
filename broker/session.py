"""The protocol of a broker session, kept by `amqp.py` (RabbitMQ) and `memory.py` (unit tests)."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from broker.errors import BrokerError
from topology import names

ExchangeKind = Literal["direct", "fanout", "topic"]

# Exchange of RabbitMQ's event exchange plugin, which reports at once that a node's inbox is gone.
BROKER_EVENTS = "amq.rabbitmq.event"


@dataclass(slots=True)
class Delivery:
    """A message taken from a queue. Its one fate is `ack` or `requeue`; later calls do nothing."""

    body: bytes
    exchange: str
    routing_key: str
    headers: Mapping[str, object]
    redelivered: bool
    settle: Callable[[bool], None]
    sender: str = ""  # the user that sent it; empty if it does not say, as trusted ones
    settled: bool = False

    def ack(self) -> None:
        """The message is done with; the broker forgets it."""
        self._settle(True)

    def requeue(self) -> None:
        """The message goes back to its queue, at its old place where the broker can."""
        self._settle(False)

    def _settle(self, done: bool) -> None:
        if not self.settled:
            self.settled = True
            settle, self.settle = self.settle, _settled_before
            settle(done)


def _settled_before(_done: bool) -> None:
    """Replaces the callback, which refers to the message."""


DeliveryHandler = Callable[[Delivery], None]


@dataclass(frozen=True, slots=True)
class JoinedNode:
    """A node that has a broker's user of its own, with rights for itself in one model's tree."""

    name: str
    model: str

    @property
    def user(self) -> str:
        """Its user, which the broker puts its name to whatever the node publishes."""
        return names.joined_user(self.name)


def vouched_node(delivery: Delivery) -> str:
    """The joined node that sent this, vouched for by the broker; empty if it vouches for none.

    A queue that dead-letters keeps the sender and changes the receiver: such messages do not count.
    """
    if delivery.exchange == "" or "x-death" in delivery.headers:
        return ""
    return names.joined_node(delivery.sender) or ""


class Session(Protocol):
    """A process's connection to the broker. It is lost as a whole: open a new one."""

    closed: asyncio.Future[BrokerError]  # resolved with the reason once the session is over
    blocking: asyncio.Event  # set while the broker takes no publishes (memory or disk alarm)
    flowing: asyncio.Event  # set while it does
    deletes: bool  # deleting a queue cannot lose a message that arrives meanwhile
    # Of a session of a joined node, which may not publish to queues: what it publishes to one (with
    # exchange "") goes through names.JOINED_EXCHANGE. None: the session is trusted.
    joined: JoinedNode | None

    @property
    def blocked(self) -> bool:
        """True while the broker takes no publishes."""

    async def declare_exchange(self, name: str, kind: ExchangeKind) -> None: ...

    async def declare_queue(self, name: str, *, exclusive: bool = False) -> None:
        """Declares a durable queue, or an exclusive one that vanishes with this session.

        Raises QueueLocked.
        """

    async def bind(self, queue: str, exchange: str, key: str) -> None:
        """Raises NotFound if there is no such queue or exchange; the session survives."""

    async def unbind(self, queue: str, exchange: str, key: str) -> None: ...

    async def delete_queue(self, name: str) -> bool:
        """Deletes the queue if it is empty and without consumers; False otherwise.

        Deliveries from it that are not settled yet are lost with it.
        """

    async def delete_exchange(self, name: str, *, if_unused: bool = False) -> bool:
        """Deletes the exchange and the bindings from it.

        With `if_unused` only if there are no such bindings; False otherwise.
        """

    async def depth(self, queue: str) -> int | None:
        """Messages ready in the queue; None if it does not exist or another session owns it."""

    async def exists(self, queue: str) -> bool:
        """True if the queue exists, also if another session owns it."""

    async def consume(self, queue: str, handler: DeliveryHandler, *, prefetch: int) -> str:
        """Starts deliveries to `handler` and returns the consumer's tag.

        `handler` is called on the event loop and must not block. Raises NotFound if there is no
        such queue; the session survives.
        """

    async def cancel(self, tag: str) -> None:
        """Ends that consumer. Deliveries that were made still have to be settled."""

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        *,
        persistent: bool = False,
        headers: Mapping[str, object] | None = None,
    ) -> asyncio.Future[bool]:
        """Publishes, mandatory and confirmed. Never raises.

        With exchange "" it goes to the queue named `key`. The future resolves to True once the
        broker has put the message into a queue, to False if no queue took it; it fails with
        ConnectionLost, Unsendable or BrokerError (refused).
        """

    async def close(self) -> None: ...
