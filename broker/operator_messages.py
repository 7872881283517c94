"""Messages for operators' pages, in addition to those of wire.py.

The same rules hold: unknown fields are ignored, new ones have a default, `tests/golden/` has one
JSON file for each message.
"""

from typing import Annotated, Any, TypeVar

import msgspec

from broker.bounds import Count, Name, Note, Seconds
from broker.errors import DecodeError
from broker.wire import Wire

MAX_LISTED = 50_000  # queues or bindings of one broker

Rate = Annotated[float, msgspec.Meta(ge=0, le=1e9)]  # messages a second


class QueueFigures(Wire, frozen=True, kw_only=True):
    """One of our queues as the broker counts it. `head_age`: of its oldest message, in seconds."""

    name: Name
    ready: Count = 0
    unacked: Count = 0
    consumers: Count = 0
    bytes: Count = 0
    published: Rate = 0.0
    delivered: Rate = 0.0
    head_age: Seconds | None = None
    exclusive: bool = False


class Binding(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Messages that come to the exchange `source` with this key go to the queue `destination`."""

    source: Name
    destination: Name
    key: Name


class BrokerMember(Wire, frozen=True, kw_only=True):
    """A member of the broker's cluster; amounts are bytes. `partitions`: members it cannot see."""

    name: Name
    running: bool = True
    memory: Count = 0
    memory_limit: Count = 0
    memory_alarm: bool = False
    disk_free: Count = 0
    disk_limit: Count = 0
    disk_alarm: bool = False
    connections: Count = 0  # of clients: open sockets
    partitions: Annotated[tuple[Name, ...], msgspec.Meta(max_length=1000)] = ()


class BrokerOverview(Wire, frozen=True, kw_only=True):
    """What the broker's management API said last. The recorder publishes it every few seconds.

    `problem`: why it said nothing this time; then the lists are empty.
    """

    process: Name  # of the recorder
    version: Name = ""  # of RabbitMQ
    cluster: Name = ""
    members: Annotated[tuple[BrokerMember, ...], msgspec.Meta(max_length=1000)] = ()
    queues: Annotated[tuple[QueueFigures, ...], msgspec.Meta(max_length=MAX_LISTED)] = ()
    bindings: Annotated[tuple[Binding, ...], msgspec.Meta(max_length=MAX_LISTED)] = ()
    problem: Note = ""


T = TypeVar("T", bound=Wire)
_decoders: dict[type[Wire], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (BrokerOverview,)
}


def decode_operator_message(body: bytes, kind: type[T]) -> T:
    """Parses `body` as `kind`. Raises DecodeError."""
    try:
        message: T = _decoders[kind].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DecodeError(f"not a {kind.__name__}: {error}") from error
    return message
