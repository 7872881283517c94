"""The message in which a node describes itself, for dashboards and the command line."""

from typing import Annotated, Literal

import msgspec

from broker.bounds import (
    Count,
    JobCount,
    Moment,
    Name,
    NodeName,
    NodeNames,
    Note,
    Seconds,
    Slots,
    Unit,
)
from broker.wire import Task, Wire

NodeStatus = Literal["starting", "idle", "busy", "draining", "drained", "failed", "stopped"]


class NodeState(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A node as it describes itself on the events exchange (the `Event` of the design)."""

    name: NodeName
    parent: NodeName | None  # None: a root
    children: NodeNames
    model: Name
    engine: Name  # "none" for a root
    device: Name
    policy: Name
    status: NodeStatus
    slots: Slots
    running: Slots
    held: JobCount  # taken from the queue, waiting inside the node
    received: Count
    finished: Count
    tokens: Count  # generated since the start
    host: Name
    pid: Count
    started: Moment
    sent: Moment
    detail: Note = ""  # why it failed, or what it is doing while starting
    waited: Seconds = 0.0  # mean wait of the latest jobs that waited here
    prompt_tokens: Count = 0  # since its engine started; 0 if the engine does not count them
    reused_tokens: Count = 0  # of these, found in the prefix cache
    wait_error: Seconds = 0.0  # mean absolute error of the first estimates of those waits
    context_length: Count = 0  # tokens of prompt and answer together; 0: unknown
    warning: Note = ""  # for the operator, while the node serves
    failed: Count = 0  # runs that ended by a fault of the node, or were given up, since the start
    oldest_wait: Seconds = 0.0  # of the jobs that wait here: how long the first of them has
    memory: Count = 0  # bytes of its device that its process takes; 0: unknown
    memory_total: Count = 0  # bytes that the device has
    memory_free: Count = 0  # bytes that nobody takes; 0: unknown
    precision: Name = ""  # the number format of the weights; empty: unknown
    weights: Count = 0  # bytes in its process's memory; 0: unknown
    # what its engine does; a root's says nothing
    tasks: Annotated[tuple[Task, ...], msgspec.Meta(max_length=16)] = ("generate",)
    cache: Count = 0  # bytes of keys and values; 0: unknown, or they grow with the jobs
    version: Name = ""  # the release that it runs; empty from older ones
    loaded: Unit | None = None  # of its model's weights while it starts; None: not known
    joined: bool = False  # with a token of its own: a leaf, below which nothing hangs
