"""What API processes tell each other during a drill, after the rules of wire.py.

All of it goes to the events exchange, key `drill`. One process conducts the drill; each one,
itself among them, counts the requests that it reads.
"""

from typing import Annotated

import msgspec

from broker.bounds import JobCount, Name, NodeName, Seconds
from broker.job_messages import MAX_LISTED, MAX_RUNNING
from broker.wire import Wire

Running = Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_RUNNING)]
Waiting = Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_LISTED)]


class DrillMessage(Wire, frozen=True, kw_only=True, tag_field="kind"):
    """Base. `process`: the sender; `number` names the drill."""

    process: Name
    number: Name


class PrepareDrill(DrillMessage, frozen=True, kw_only=True, tag="prepare_drill"):
    """This node will be killed: follow its jobs from now on, and tell what you count."""

    node: NodeName


class NodeKilled(DrillMessage, frozen=True, kw_only=True, tag="node_killed"):
    """The node is being killed now. The jobs that it ran or kept waiting, by id."""

    running: Running = ()
    waiting: Waiting = ()


class EndDrill(DrillMessage, frozen=True, kw_only=True, tag="end_drill"):
    """Nobody wants to know more."""


class DrillCounts(DrillMessage, frozen=True, kw_only=True, tag="drill_counts"):
    """What one process has counted so far, of the requests that it reads.

    `affected`: jobs that the killed process ran, prompts included; each of them is one of `moved`
    (it goes on at another node), `returned` (at the same node, started again), `lost` (it ended
    with an error), `left` (its reader left, or cancelled it) or `open`. `waiting`: jobs that waited
    inside the node; of these, `waiting_lost` ended with an error. `slowest`: seconds from the kill
    to the next token of an affected job.
    """

    affected: JobCount = 0
    moved: JobCount = 0
    returned: JobCount = 0
    lost: JobCount = 0
    left: JobCount = 0
    open: JobCount = 0
    waiting: JobCount = 0
    waiting_lost: JobCount = 0
    slowest: Seconds | None = None


AnyDrillMessage = PrepareDrill | NodeKilled | EndDrill | DrillCounts
