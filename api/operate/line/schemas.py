"""Bodies and responses of the line's endpoints."""

from datetime import datetime
from typing import Annotated, Literal

from ninja import Schema
from pydantic import Field, StringConstraints

from api.http.parsing import Body, Integer, StorableText
from broker.job_messages import MAX_LISTED
from broker.wire import JobClass

Name = Annotated[StorableText, StringConstraints(max_length=255)]


class LineQuery(Schema):
    """Which jobs: those of a user, those whose ids begin so. `limit`: waiting ones of a node."""

    user: Name | None = None
    request_id: Name = ""
    limit: Annotated[Integer, Field(ge=0, le=MAX_LISTED)] = MAX_LISTED


class Move(Body):
    """Where to: before the others of its class, or before all jobs as an interactive one."""

    before: Literal["class", "all"] = "class"


class NewClass(Body):
    """The class in which a job waits from now on."""

    job_class: JobClass


class JobOutcome(Schema):
    """What was done to a job, by which node."""

    request_id: str
    node: str
    note: str


class Prompt(Schema):
    """What a job asks. `letters`: of the whole text; `text` may be shorter."""

    request_id: str
    node: str
    text: str
    letters: int


class IntakeChange(Body):
    """Whether a model takes new requests, and the reason shown to those who are refused."""

    model: Annotated[Name, StringConstraints(min_length=1)]
    paused: bool
    reason: Annotated[StorableText, StringConstraints(strip_whitespace=True, max_length=200)] = ""


class PausedModel(Schema):
    """A model that takes no new requests."""

    model: str
    reason: str
    who: str
    since: datetime


class PausedModels(Schema):
    """All of them."""

    paused: list[PausedModel]


class PromptAccess(Schema):
    """Whether operators may see prompts, and whether I may change that."""

    allowed: bool
    may_change: bool


class PromptDecision(Body):
    """Whether operators may see prompts."""

    allowed: bool
