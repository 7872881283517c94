"""What the endpoints of the logs take and give."""

from typing import Annotated

from ninja import Schema
from pydantic import Field, StringConstraints

from api.http.parsing import Integer
from api.operate.logs.lines import Level

MAX_LINES = 2_000
Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)]


class LogQuery(Schema):
    """Which lines. `process`: empty for all; `level`: this and worse; `request`: a request id."""

    process: Text = ""
    level: Level = "debug"
    request: Text = ""
    lines: Annotated[Integer, Field(ge=1, le=MAX_LINES)] = 200


class LogProcess(Schema):
    """A process that has a log here. `modified`: Unix seconds."""

    name: str
    bytes: int
    modified: float


class LogLineView(Schema):
    """One line. `at`: Unix seconds."""

    process: str
    at: float | None
    level: Level
    text: str


class Logs(Schema):
    """The last lines, the oldest first, and whose there are."""

    processes: list[LogProcess]
    lines: list[LogLineView]
