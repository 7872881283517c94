"""The tree's edges as the broker has them now: a periodic listing, and events in between.

RabbitMQ's event exchange reports at once which queues and bindings come and go. Listings are some
seconds old, so the latest events are applied to each of them again. Without the event exchange, or
the right to read it, the edges are as old as the listing.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from broker.errors import AccessRefused, NotFound
from broker.management import Edges, Listed, read_edges
from broker.operator_messages import BrokerOverview
from broker.session import BROKER_EVENTS, Delivery, Session
from topology import names

PREFETCH = 1000
REPLAY_SECONDS = 15.0  # events so old are in every listing
MAX_EVENTS = 100_000  # remembered for that
EVENT_KEYS = ("queue.created", "queue.deleted", "binding.created", "binding.deleted")

BindingKey = tuple[str, str, str]  # source, destination, routing key
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Event:
    """Something appeared (`created`) or vanished at that time (monotonic clock)."""

    at: float
    created: bool
    queue: str = ""
    binding: BindingKey = ("", "", "")


class EdgeWatch:
    """Follows the tree's queues and bindings; calls `on_change` when they may have changed."""

    def __init__(self, process: str, on_change: Callable[[], None]) -> None:
        self._queue = names.edges_watch(process)
        self._on_change = on_change
        self._queues: set[str] = set()
        self._bindings: set[BindingKey] = set()
        self._events: deque[_Event] = deque(maxlen=MAX_EVENTS)
        self._edges: Edges | None = None

    def now(self) -> Edges:
        """The edges as far as they are known."""
        if self._edges is None:
            bindings: list[Listed] = []
            for source, destination, key in self._bindings:
                bindings.append({"source": source, "destination": destination, "routing_key": key})
            self._edges = read_edges(bindings, [{"name": name} for name in self._queues])
        return self._edges

    async def open(self, session: Session) -> None:
        """Follows on a new session. Raises BrokerError."""
        self._events.clear()
        await session.declare_queue(self._queue, exclusive=True)
        try:
            for key in EVENT_KEYS:
                await session.bind(self._queue, BROKER_EVENTS, key)
        except (NotFound, AccessRefused) as error:
            log.warning(
                "the broker's events cannot be read: the tree is shown some seconds late",
                reason=str(error),
            )
        await session.consume(self._queue, self._on_event, prefetch=PREFETCH)

    def on_overview(self, overview: BrokerOverview) -> None:
        """A new listing; one without content, because of a problem, changes nothing."""
        if overview.problem:
            return
        self._queues = {queue.name for queue in overview.queues}
        self._bindings = {
            (binding.source, binding.destination, binding.key) for binding in overview.bindings
        }
        earliest = time.monotonic() - REPLAY_SECONDS
        while self._events and self._events[0].at < earliest:
            self._events.popleft()
        for event in self._events:
            self._apply(event)
        self._changed()

    def _on_event(self, delivery: Delivery) -> None:
        delivery.ack()
        event = _read_event(delivery)
        if event is not None:
            self._events.append(event)
            self._apply(event)
            self._changed()

    def _apply(self, event: _Event) -> None:
        if event.queue and event.created:
            self._queues.add(event.queue)
        elif event.queue:
            self._queues.discard(event.queue)
        elif event.created:
            self._bindings.add(event.binding)
        else:
            self._bindings.discard(event.binding)

    def _changed(self) -> None:
        self._edges = None
        self._on_change()


def _read_event(delivery: Delivery) -> _Event | None:
    """The event, if it is about an object of the tree."""
    kind, _, verb = delivery.routing_key.partition(".")
    headers = delivery.headers
    created, now = verb == "created", time.monotonic()
    if kind == "queue":
        name = str(headers.get("name", ""))
        if names.node_of(name) is None and names.inbox_owner(name) is None:
            return None
        return _Event(now, created, queue=name)
    source = str(headers.get("source_name", ""))
    destination = str(headers.get("destination_name", ""))
    if names.node_of(destination) is None or not source:
        return None
    return _Event(now, created, binding=(source, destination, str(headers.get("routing_key", ""))))
