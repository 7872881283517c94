"""What hosts' agents and operators tell each other, after the rules of wire.py.

An agent reads its exclusive queue `canopy.agent.<host>` and publishes its state, with the results
of the latest requests, on the events exchange, key `agent.<host>`.
"""

from typing import Annotated, Literal

import msgspec

from broker.bounds import Count, Moment, Name, NodeName, Note, Slots
from broker.wire import Wire

MAX_NODES = 1_000  # of one host
MAX_RESULTS = 20  # of the latest requests, in each state
TAIL_LINES = 12  # of the output of a node that did not start
STATE_SECONDS = 2.0  # between two states of an agent, at most
SILENT_SECONDS = 10.0  # after which an agent counts as gone

HostName = NodeName  # by the same rules
DeviceName = Annotated[str, msgspec.Meta(pattern=r"^(|auto|cpu|cuda:[0-9]{1,3})\Z")]
NodeSlots = Annotated[int, msgspec.Meta(ge=1, le=1_000)]
Lines = Annotated[tuple[Note, ...], msgspec.Meta(max_length=TAIL_LINES)]
ProcessState = Literal[
    "preparing", "starting", "running", "restarting", "leaving", "removed", "failed"
]


class HostRequest(Wire, frozen=True, kw_only=True, tag_field="kind"):
    """Base of what an agent is asked. `number` names the request in the agent's results."""

    number: Name
    node: NodeName


class StartNode(HostRequest, frozen=True, kw_only=True, tag="start_node"):
    """Start a node of a model that the host allows; without a parent, the model's root."""

    model: Name
    parent: NodeName | None = None
    slots: NodeSlots | None = None  # None: the engine decides
    device: DeviceName = ""  # empty: the agent's choice


class StopNode(HostRequest, frozen=True, kw_only=True, tag="stop_node"):
    """End that node's process in order and do not start it again."""


class KillNode(HostRequest, frozen=True, kw_only=True, tag="kill_node"):
    """Kill that node's process at once, as a drill; it is started again like one that crashed."""


AnyHostRequest = StartNode | StopNode | KillNode


class HostResult(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Whether a request was accepted; `note`: why not."""

    number: Name
    accepted: bool
    note: Note = ""


class HostDevice(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A GPU; amounts are bytes."""

    name: Name
    memory: Count
    memory_free: Count


class HostModel(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A model that the host may serve. `bytes`: of its weights; 0: not known yet."""

    name: Name
    bytes: Count = 0


class HostNode(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A node's process on the host.

    `note`: what it is doing while it starts, or why it failed; `tail`: its last lines then.
    """

    name: NodeName
    state: ProcessState
    pid: Count = 0
    model: Name = ""  # of nodes that were started on request
    parent: Name = ""
    note: Note = ""
    tail: Lines = ()


class HostState(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A host as its agent describes it; amounts are bytes."""

    name: HostName
    host: Name
    sent: Moment
    cpus: Count
    memory: Count
    memory_free: Count
    engine: Name
    max_nodes: Slots
    devices: Annotated[tuple[HostDevice, ...], msgspec.Meta(max_length=64)] = ()
    models: Annotated[tuple[HostModel, ...], msgspec.Meta(max_length=1_000)] = ()
    nodes: Annotated[tuple[HostNode, ...], msgspec.Meta(max_length=2 * MAX_NODES)] = ()
    results: Annotated[tuple[HostResult, ...], msgspec.Meta(max_length=MAX_RESULTS)] = ()
    drills: bool = False  # it kills nodes on request
    leaving: bool = False
