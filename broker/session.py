"""What the rest of Canopy asks of a broker: one protocol, kept by `amqp.py` (RabbitMQ) and `memory.py` (unit tests)."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

ExchangeKind = Literal["direct", "fanout", "topic"]


class BrokerError(Exception):
    """The broker refused an operation; the text is the broker's own."""


class Unsendable(BrokerError):
    """AMQP cannot carry this message: a name or the headers are too long, or the body is too large. Nothing was
    sent, the session is as it was, and trying again does not help.
    """


class ConnectionLost(BrokerError):
    """The connection is gone, or was never made. Everything unacknowledged will be delivered again."""


class QueueLocked(BrokerError):
    """Another connection holds this exclusive queue."""


class NotFound(BrokerError):
    """No such queue or exchange."""


class AccessRefused(BrokerError):
    """Wrong credentials, or a right this user does not have."""


@dataclass(slots=True)
class Delivery:
    """One message taken from a queue. It has exactly one fate: `ack` or `requeue`; later calls do nothing."""

    body: bytes
    exchange: str
    routing_key: str
    headers: Mapping[str, object]
    redelivered: bool
    settle: Callable[[bool], None]
    settled: bool = False

    def ack(self) -> None:
        """The message was dealt with; the broker forgets it."""
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
    """In place of what held on to the message."""


DeliveryHandler = Callable[[Delivery], None]


class Session(Protocol):
    """One process's presence at the broker. When it is lost it is lost whole: open a new one."""

    closed: asyncio.Future[BrokerError]  # resolved with the reason once the session is over
    blocking: asyncio.Event  # set while the broker takes no publishes (memory or disk alarm)
    flowing: asyncio.Event  # set while it does
    deletes: (
        bool  # a queue can be deleted without the risk of losing a message that comes meanwhile
    )

    @property
    def blocked(self) -> bool:
        """True while the broker takes no publishes."""

    async def declare_exchange(self, name: str, kind: ExchangeKind) -> None: ...

    async def declare_queue(self, name: str, *, exclusive: bool = False) -> None:
        """A durable queue; or, exclusive, one that vanishes with this session. Raises QueueLocked."""

    async def bind(self, queue: str, exchange: str, key: str) -> None:
        """Raises NotFound if there is no such queue or exchange (the session survives)."""

    async def unbind(self, queue: str, exchange: str, key: str) -> None: ...

    async def delete_queue(self, name: str) -> bool:
        """Deletes the queue if nothing waits in it and nobody consumes it; False otherwise.

        What was delivered from it and is not settled yet goes with it.
        """

    async def delete_exchange(self, name: str, *, if_unused: bool = False) -> bool:
        """Deletes the exchange with the bindings that lead from it; with `if_unused` only if there are none, else
        False.
        """

    async def depth(self, queue: str) -> int | None:
        """Messages ready in the queue, None if there is no such queue or it is exclusive to another session."""

    async def exists(self, queue: str) -> bool:
        """True also for a queue that is exclusive to another session."""

    async def consume(self, queue: str, handler: DeliveryHandler, *, prefetch: int) -> str:
        """Starts deliveries to `handler` (called on the event loop, must not block); returns the consumer's tag.

        Raises NotFound if there is no such queue (the session survives).
        """

    async def cancel(self, tag: str) -> None:
        """Ends that consumer. Deliveries already made stay with their holder."""

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        *,
        persistent: bool = False,
        headers: Mapping[str, object] | None = None,
    ) -> asyncio.Future[bool]:
        """Sends, mandatory and confirmed. Resolves True once the broker has it in a queue, False if no queue
        took it; fails with ConnectionLost, Unsendable or BrokerError (refused). Never raises by itself.
        """

    async def close(self) -> None: ...
