"""What the endpoints of plans take and give."""

from typing import Annotated

from ninja import Schema
from pydantic import Field, StringConstraints

from api.http.parsing import Body, Integer, StorableText

PlanName = Annotated[
    StorableText, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)
]
UserName = Annotated[StorableText, StringConstraints(min_length=1, max_length=150)]
Limit = Annotated[Integer, Field(ge=1, le=1_000_000_000)]
Tokens = Annotated[Integer, Field(ge=1, le=10**15)]


class PlanBody(Body):
    """A plan's limits; null, or left out: none."""

    name: PlanName
    requests_per_minute: Limit | None = None
    tokens_per_day: Tokens | None = None
    jobs_running: Limit | None = None
    jobs_waiting: Limit | None = None
    conversations: Limit | None = None
    streams: Limit | None = None
    default: bool = False


class PlanNameBody(Body):
    """Which plan."""

    name: PlanName


class AssignBody(Body):
    """Whose plan; `plan`: null for the default one."""

    user: UserName
    plan: PlanName | None


class PlanAnswer(Schema):
    """A plan. `users`: how many have it, not counting those who have it as the default."""

    name: str
    requests_per_minute: int | None
    tokens_per_day: int | None
    jobs_running: int | None
    jobs_waiting: int | None
    conversations: int | None
    streams: int | None
    default: bool
    users: int


class PlanList(Schema):
    """All plans by name."""

    plans: list[PlanAnswer]
