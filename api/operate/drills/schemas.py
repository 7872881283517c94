"""What the endpoints of drills take and give."""

from datetime import datetime
from typing import Annotated, Literal

from ninja import Schema
from pydantic import Field

from api.http.parsing import Body, Integer
from api.operate.drills.models import Drill
from api.operate.drills.plan import Plan
from api.operate.nodes.schemas import NodeName

LISTED = 100  # running jobs of a preview


class DrillQuery(Schema):
    """The node that would be killed."""

    node: NodeName


class DrillBody(Body):
    """The node to kill. After `seconds`, jobs that have not gone on count as lost."""

    node: NodeName
    seconds: Annotated[Integer, Field(ge=5, le=600)] = 120


class HitJob(Schema):
    """A running job of that node, for so many seconds."""

    request_id: str
    user: str
    seconds: float
    tokens: int


class DrillPlan(Schema):
    """What a drill would hit now. `refusal`: why it cannot begin; empty if it can.

    `running` lists some of the `running_count` jobs; `waiting`: jobs that wait inside the node.
    """

    node: str
    host: str
    refusal: str
    running: list[HitJob]
    running_count: int
    waiting: int


class DrillResult(Schema):
    """A drill and what it has counted; see api.operate.drills.models.Drill."""

    id: int
    node: str
    host: str
    by: str
    state: Literal["running", "done", "failed"]
    note: str
    began: datetime
    processes: int
    affected: int
    moved: int
    returned: int
    lost: int
    left: int
    open: int
    waiting: int
    slowest: float | None
    back: float | None


class DrillList(Schema):
    """The latest drills. `may_start`: whether the caller is an administrator."""

    drills: list[DrillResult]
    may_start: bool


def drill_plan(plan: Plan) -> DrillPlan:
    """The plan as the API shows it."""
    running = [
        HitJob(
            request_id=job.request_id,
            user=job.user,
            seconds=round(job.seconds, 1),
            tokens=job.tokens,
        )
        for job in plan.running[:LISTED]
    ]
    return DrillPlan(
        node=plan.node,
        host=plan.host,
        refusal=plan.refusal,
        running=running,
        running_count=len(plan.running),
        waiting=plan.waiting_count,
    )


def result(drill: Drill) -> DrillResult:
    """The row as the API shows it."""
    return DrillResult.model_validate(drill, from_attributes=True)
