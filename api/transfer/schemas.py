"""The JSON of an import, which is that of an export."""

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from ninja import Schema
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from api.chat.written import Attachments
from api.http.parsing import Body, StorableText

MOST_CONVERSATIONS = 100  # in one request
MOST_MESSAGES = 10_000  # in one conversation

_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)


def _as_text(value: object) -> object:
    """Names of messages may be numbers or texts."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def _with_zone(value: object) -> object:
    """A time as text, or as Unix seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(value, UTC)
        except (ValueError, OverflowError, OSError):
            return value
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return value
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


def _not_ancient(value: datetime) -> datetime:
    return max(value.astimezone(UTC), _EARLIEST)


Name = Annotated[StorableText, BeforeValidator(_as_text), Field(min_length=1, max_length=100)]
Time = Annotated[datetime, BeforeValidator(_with_zone), AfterValidator(_not_ancient)]
Title = Annotated[StorableText, Field(min_length=1, max_length=200)]
ModelName = Annotated[StorableText, Field(max_length=200)]
Folder = Annotated[StorableText, Field(max_length=80)]


class ImportedMessage(Body):
    """A message. `parent`: the `id` of the one that it follows, which comes before it."""

    id: Name
    parent: Name | None = None
    role: Literal["user", "assistant"]
    content: StorableText
    attachments: Attachments = Field(default_factory=list)
    model: ModelName = ""
    created: Time | None = None

    @property
    def stored_attachments(self) -> list[dict[str, str]] | None:
        """Only questions have any."""
        if self.role != "user" or not self.attachments:
            return None
        return [file.model_dump() for file in self.attachments]

    @property
    def finish_reason(self) -> str | None:
        """An imported answer is complete."""
        return "stop" if self.role == "assistant" else None


class ImportedConversation(Body):
    """A conversation with all branches. `head`: the `id` of the leaf that is shown."""

    title: Title
    model: ModelName = ""
    created: Time | None = None
    updated: Time | None = None
    pinned: bool = False
    archived: bool = False
    folder: Folder = ""
    head: Name | None = None
    messages: Annotated[list[ImportedMessage], Field(max_length=MOST_MESSAGES)]

    @model_validator(mode="after")
    def _is_a_tree(self) -> Self:
        names: set[str] = set()
        for message in self.messages:
            if message.id in names:
                raise PydanticCustomError("twice", "two messages have one id")
            if message.parent is not None and message.parent not in names:
                raise PydanticCustomError("order", "a message comes before its parent")
            names.add(message.id)
        if self.head is not None and self.head not in names:
            raise PydanticCustomError("head", "the head is not one of the messages")
        return self


class Import(Body):
    """A part of a file."""

    conversations: Annotated[
        list[ImportedConversation], Field(min_length=1, max_length=MOST_CONVERSATIONS)
    ]


class Imported(Schema):
    """What came in. `known`: conversations that were there already."""

    conversations: int
    messages: int
    known: int
