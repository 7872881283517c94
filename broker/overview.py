"""Reads the overview of the broker from its management API, and the tree's edges from that."""

from collections.abc import Iterable, Mapping
from typing import Any

from broker.errors import ManagementError
from broker.management import Edges, Listed, ManagementApi, read_edges
from broker.operator_messages import (
    MAX_LISTED,
    Binding,
    BrokerMember,
    BrokerOverview,
    QueueFigures,
)
from topology.names import OURS

_QUEUE_COLUMNS = (
    "name,exclusive,consumers,messages_ready,messages_unacknowledged,message_bytes,"
    "head_message_timestamp,message_stats.publish_details.rate,"
    "message_stats.deliver_get_details.rate"
)
_MEMBER_COLUMNS = (
    "name,running,mem_used,mem_limit,mem_alarm,disk_free,disk_free_limit,disk_free_alarm,"
    "sockets_used,partitions"
)


async def read_overview(management_url: str, process: str, now: float) -> BrokerOverview:
    """Sends four requests to the management API. `now`: Unix seconds. Raises ManagementError."""
    api = ManagementApi(management_url)
    about = await api.read("overview?columns=rabbitmq_version,cluster_name")
    bindings = await api.listing("bindings")
    # Queues after bindings: see read_edges.
    queues = await api.listing("queues", _QUEUE_COLUMNS)
    return BrokerOverview(
        process=process,
        version=_text(about.get("rabbitmq_version")),
        cluster=_text(about.get("cluster_name")),
        members=await _members(api),
        queues=tuple(_queue(queue, now) for queue in _ours(queues, "name")),
        bindings=tuple(_binding(binding) for binding in _ours(bindings, "source")),
    )


def edges_of(overview: BrokerOverview) -> Edges:
    """The tree's edges in an overview."""
    bindings: list[Listed] = []
    for binding in overview.bindings:
        bindings.append(
            {
                "source": binding.source,
                "destination": binding.destination,
                "routing_key": binding.key,
            }
        )
    return read_edges(bindings, [{"name": queue.name} for queue in overview.queues])


async def _members(api: ManagementApi) -> tuple[BrokerMember, ...]:
    """None where the broker's user may not see them: that takes the tag `monitoring`."""
    try:
        listed = await api.read(f"nodes?columns={_MEMBER_COLUMNS}")
    except ManagementError:
        return ()
    return tuple(_member(member) for member in listed)


def _ours(listed: Iterable[Listed], key: str) -> list[Listed]:
    """Our own objects: a broker may serve others, too."""
    return [item for item in listed if _text(item.get(key)).startswith(OURS)][:MAX_LISTED]


def _binding(listed: Listed) -> Binding:
    return Binding(
        source=_text(listed.get("source")),
        destination=_text(listed.get("destination")),
        key=_text(listed.get("routing_key")),
    )


def _queue(listed: Listed, now: float) -> QueueFigures:
    statistics = listed.get("message_stats")
    oldest = listed.get("head_message_timestamp")
    head_age = None
    if isinstance(oldest, int | float):
        head_age = max(0.0, now - oldest)
    return QueueFigures(
        name=_text(listed.get("name")),
        ready=_count(listed.get("messages_ready")),
        unacked=_count(listed.get("messages_unacknowledged")),
        consumers=_count(listed.get("consumers")),
        bytes=_count(listed.get("message_bytes")),
        published=_rate(statistics, "publish_details"),
        delivered=_rate(statistics, "deliver_get_details"),
        head_age=head_age,
        exclusive=listed.get("exclusive") is True,
    )


def _member(listed: Listed) -> BrokerMember:
    partitions = listed.get("partitions")
    parted: tuple[str, ...] = ()
    if isinstance(partitions, list):
        parted = tuple(map(_text, partitions))
    return BrokerMember(
        name=_text(listed.get("name")),
        running=listed.get("running") is True,
        memory=_count(listed.get("mem_used")),
        memory_limit=_count(listed.get("mem_limit")),
        memory_alarm=listed.get("mem_alarm") is True,
        disk_free=_count(listed.get("disk_free")),
        disk_limit=_count(listed.get("disk_free_limit")),
        disk_alarm=listed.get("disk_free_alarm") is True,
        connections=_count(listed.get("sockets_used")),
        partitions=parted,
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int:
    """0 while the broker does not know it: the figure is then missing, or a word."""
    if isinstance(value, int | float) and value > 0:
        return int(value)
    return 0


def _rate(statistics: Any, name: str) -> float:
    if not isinstance(statistics, Mapping):
        return 0.0
    details = statistics.get(name)
    rate = details.get("rate") if isinstance(details, Mapping) else None
    if isinstance(rate, int | float) and rate > 0:
        return round(float(rate), 2)
    return 0.0
