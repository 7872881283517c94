"""An overview of the broker as the page shows it. Pure."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from ninja import Schema

from broker.node_state import NodeState
from broker.operator_messages import Binding, BrokerMember, BrokerOverview, QueueFigures
from topology import names
from topology.prefix import Prefix

_KINDS = (
    (names.NODE_PREFIX, "node"),
    (names.INBOX_PREFIX, "inbox"),
    (names.REPLY_PREFIX, "reply"),
    (names.WATCH_PREFIX, "watch"),
    (names.STANDBY_PREFIX, "standby"),
    (names.DEAD_QUEUE, "dead"),
)


class Queue(Schema):
    """One of our queues. `oldest`: seconds, of its oldest job where that is known."""

    name: str
    kind: str
    node: str | None
    ready: int
    unacked: int
    consumers: int
    published: float
    delivered: float
    bytes: int
    oldest: float | None


class Edge(Schema):
    """Messages that come to the exchange `source` with this key go to the queue `destination`."""

    source: str
    destination: str
    key: str


class Member(Schema):
    """A member of the broker's cluster; amounts are bytes."""

    name: str
    running: bool
    memory: int
    memory_limit: int
    memory_alarm: bool
    disk_free: int
    disk_limit: int
    disk_alarm: bool
    connections: int
    partitions: list[str]


class Broker(Schema):
    """What the recorder read last, `age` seconds ago. `problem`: why it could read nothing."""

    version: str
    cluster: str
    problem: str
    age: float
    page: str | None
    members: list[Member]
    queues: list[Queue]
    edges: list[Edge]


def describe(
    overview: BrokerOverview, states: Mapping[str, NodeState], age: float, management_url: str
) -> Broker:
    """The overview with what the nodes say of the jobs in their hands.

    Names are shown as they are in the broker, so that its own tools find them.
    """
    prefix = Prefix.of(management_url)
    edges = [_edge(binding, prefix) for binding in overview.bindings if _is_edge(binding)]
    return Broker(
        version=overview.version,
        cluster=overview.cluster,
        problem=overview.problem,
        age=round(age, 1),
        page=page_address(management_url),
        members=[_member(member) for member in overview.members],
        queues=[_queue(queue, states, prefix) for queue in overview.queues],
        edges=edges,
    )


def page_address(management_url: str) -> str | None:
    """RabbitMQ's own page, without the name and the password."""
    parts = urlsplit(management_url)
    if not parts.hostname:
        return None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/"


def _is_edge(binding: Binding) -> bool:
    return names.node_of(binding.destination) is not None


def _edge(binding: Binding, prefix: Prefix) -> Edge:
    return Edge(
        source=prefix.outside(binding.source),
        destination=prefix.outside(binding.destination),
        key=binding.key,
    )


def _queue(queue: QueueFigures, states: Mapping[str, NodeState], prefix: Prefix) -> Queue:
    node = names.node_of(queue.name)
    oldest = queue.head_age
    state = states.get(node or "")
    if oldest is None and state is not None and state.held:
        oldest = state.oldest_wait
    return Queue(
        name=prefix.outside(queue.name),
        kind=_kind(queue.name),
        node=node or names.inbox_owner(queue.name),
        ready=queue.ready,
        unacked=queue.unacked,
        consumers=queue.consumers,
        published=queue.published,
        delivered=queue.delivered,
        bytes=queue.bytes,
        oldest=oldest,
    )


def _kind(name: str) -> str:
    for prefix, kind in _KINDS:
        if name.startswith(prefix):
            return kind
    return "other"


def _member(member: BrokerMember) -> Member:
    return Member(
        name=member.name,
        running=member.running,
        memory=member.memory,
        memory_limit=member.memory_limit,
        memory_alarm=member.memory_alarm,
        disk_free=member.disk_free,
        disk_limit=member.disk_limit,
        disk_alarm=member.disk_alarm,
        connections=member.connections,
        partitions=list(member.partitions),
    )
