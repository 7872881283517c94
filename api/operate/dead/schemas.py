"""What the endpoints of dead letters take and give."""

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from ninja import Schema
from pydantic import Field, StringConstraints

from api.http.parsing import Body, Integer
from api.operate.dead.models import DeadReplay
from broker.dead_letters import Letter, describe
from broker.wire import Role

MAX_IDS = 1_000
MAX_LISTED = 1_000
LongestId = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class DeadLetter(Schema):
    """A letter without any of its user's text. `when`: Unix seconds; null: not a job's, or unknown.

    `attempts`: how often it was to run; `trail`: the nodes that handled it; `faults`: its lost
    runs.
    """

    id: str
    when: float | None
    model: str | None
    user: str | None
    node: str
    reason: str
    attempts: int | None
    trail: list[str]
    faults: list[str]


class DeadLetters(Schema):
    """The oldest letters.

    `waiting`: how many there are, without those that are replayed now; `reads_texts`: whether the
    caller may read what users wrote.
    """

    letters: list[DeadLetter]
    waiting: int | None
    reads_texts: bool


class DeadContent(Schema):
    """What the job asked for, or the message that is no job, with escapes for what is no text."""

    letter: DeadLetter
    job: dict[str, Any] | None
    raw: str | None


class ChangedMessage(Body):
    """One message of a dialogue."""

    role: Role
    content: str


class ChangesBody(Body):
    """What is different in the new job; `sampling`: some fields of its sampling."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    messages: list[ChangedMessage] | None = None
    prompt: str | None = None
    sampling: dict[str, Any] | None = None


class ReplayBody(Body):
    """Which letters' jobs run again. `changes`: only for a single one."""

    ids: Annotated[list[LongestId], Field(min_length=1, max_length=MAX_IDS)]
    changes: ChangesBody | None = None


class DropBody(Body):
    """Which letters are removed for good; `all`: those that are there now."""

    ids: Annotated[list[LongestId], Field(max_length=MAX_IDS, default_factory=list)]
    all: bool = False


class Dropped(Schema):
    """How many letters were removed."""

    dropped: int


class Replay(Schema):
    """A job that runs again, or has. `error`: why it failed; its letter is in the queue again.

    `given`: its user has the answer, in place of the failed one.
    """

    id: int
    letter: str
    request_id: str
    model: str
    user: str
    by: str
    state: Literal["waiting", "running", "answered", "failed"]
    tokens: int
    node: str
    error: str
    given: bool
    created: datetime
    updated: datetime


class ReplayList(Schema):
    """Replays, newest first."""

    replays: list[Replay]


class ReplayAnswer(Schema):
    """The beginning of a replay's answer."""

    answer: str


class DeadQuery(Schema):
    """How many of the oldest letters."""

    limit: Annotated[Integer, Field(ge=1, le=MAX_LISTED)] = 200


def replay(row: DeadReplay) -> Replay:
    """The row as the API shows it."""
    return Replay(
        id=row.pk,
        letter=row.letter,
        request_id=row.request_id,
        model=row.model,
        user=row.user,
        by=row.by,
        state=row.state,
        tokens=row.tokens,
        node=row.node,
        error=row.error,
        given=row.given,
        created=row.created,
        updated=row.updated,
    )


def letter(letter: Letter) -> DeadLetter:
    """The letter as the API shows it."""
    return DeadLetter(**describe(letter))


def raw_text(body: bytes) -> str:
    """A body that is no job, readable."""
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        return body.decode(errors="backslashreplace")
