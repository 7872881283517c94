"""Requests and responses of the chat's endpoints."""

from datetime import datetime
from typing import Annotated, Any, Self

from ninja import Schema
from pydantic import AfterValidator, AliasChoices, Field

from api.chat import models
from api.chat.conversation_list import LONGEST_PAGE, PAGE
from api.chat.turns import Draft
from api.chat.written import AttachedText, Content, Written, not_blank
from api.http.parsing import MAX_ROW_ID, Body, Integer, StorableText

Title = Annotated[StorableText, AfterValidator(not_blank), Field(max_length=200)]
ModelName = Annotated[StorableText, Field(min_length=1, max_length=200)]
RowId = Annotated[Integer, Field(ge=1, le=MAX_ROW_ID)]
Folder = Annotated[StorableText, Field(max_length=80)]


class NewConversation(Written):
    """A new conversation.

    `content` and `attachments`: its first message; if that is refused there is no conversation
    either. `temporary`: it is not listed, and purged a day after its latest change. `preset`: the
    number of one of the user's, which says how answers are wanted.
    """

    model: ModelName | None = None
    temporary: bool = False
    preset: RowId | None = None

    def draft(self) -> Draft | None:
        """The first message, if there is one."""
        if self.content is None:
            return None
        return Draft(self.content, self.stored_attachments())


class ConversationChange(Body):
    """The fields of a conversation that can be changed.

    `head`: a message of the branch to be shown from now on. `folder`: its name, empty for none.
    """

    title: Title | None = None
    model: ModelName | None = None
    head: RowId | None = None
    pinned: bool | None = None
    archived: bool | None = None
    folder: Folder | None = None

    def place(self) -> dict[str, Any]:
        """The fields that say where lists show it."""
        fields: dict[str, Any] = {"pinned": self.pinned, "archived": self.archived}
        if self.folder is not None:
            fields["folder"] = self.folder.strip()
        return {name: value for name, value in fields.items() if value is not None}


class NewMessage(Written):
    """A message of the user.

    `parent`: the message that it follows, as a new branch; null for the conversation's beginning;
    without the field it follows the head. `head`: the head that the sender saw; a different one
    is a conflict.
    """

    content: Content
    model: ModelName | None = None
    parent: RowId | None = None
    head: RowId | None = None

    def draft(self) -> Draft:
        """The message as it is to be stored."""
        return Draft(
            content=self.content,
            attachments=self.stored_attachments(),
            model=self.model,
            append="parent" not in self.model_fields_set,
            parent=self.parent,
            checks_head="head" in self.model_fields_set,
            seen_head=self.head,
        )


class Regeneration(Body):
    """Another answer to the same question; `model`: the conversation's own if it is null.

    `beside`: to be compared with this answer, which stays the one that is shown.
    """

    model: ModelName | None = None
    beside: bool = False


class Summary(Schema):
    """A conversation in the list.

    `head`: the leaf of the branch that is shown. `running`: an answer is being written.
    """

    id: int
    title: str
    model: str
    updated: datetime
    pinned: bool
    archived: bool
    folder: str
    temporary: bool
    running: bool = False
    head: int | None = Field(None, validation_alias=AliasChoices("head_id", "head"))


class ListQuery(Schema):
    """Which part of the list."""

    folder: Folder = ""
    archived: bool = False
    cursor: Annotated[str, Field(max_length=60)] | None = None
    limit: Annotated[int, Field(ge=1, le=LONGEST_PAGE)] = PAGE
    through: Annotated[int, Field(ge=1, le=MAX_ROW_ID)] | None = None


class FolderSummary(Schema):
    """A folder, and how many conversations it has."""

    name: str
    count: int


class Page(Schema):
    """A part of the list: pinned conversations first, then the newest.

    `next`: the `cursor` of the following page; null at the end. `archived`: how many there are.
    """

    conversations: list[Summary]
    next: str | None
    folders: list[FolderSummary]
    archived: int


class Hop(Schema):
    """A node on a request's way, and how long the request waited there."""

    node: str
    wait_ms: int


class Message(Schema):
    """One message. Of an answer: `model` and `node` that gave it, and how long that took.

    `parent`: the message that it follows, null for the first one. `ttft_ms`: from its submission
    to the first text. `seconds`: from the first text to the end. `moved`: how often it went on at
    another node. `trail`: the nodes on its way, root first. Empty or null where it is not known.
    `beside`: the answer that it is compared with, until one of them is chosen as the head.
    """

    id: int
    parent: int | None
    role: models.Role
    content: str
    attachments: list[AttachedText]
    beside: int | None
    status: models.Status
    error: str | None
    error_code: str
    created: datetime
    finish_reason: str | None
    model: str
    node: str
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: int | None
    seconds: float
    moved: int
    trail: list[Hop]

    @classmethod
    def of(cls, message: models.Message) -> Self:
        """The stored message."""
        return cls(
            id=message.pk,
            parent=message.parent_id,
            role=message.role,
            content=message.content,
            attachments=message.attachments or [],
            beside=message.beside,
            status=message.status,
            error=message.error,
            error_code=message.error_code,
            created=message.created,
            finish_reason=message.finish_reason,
            model=message.model,
            node=message.node,
            prompt_tokens=message.prompt_tokens,
            completion_tokens=message.completion_tokens,
            ttft_ms=message.ttft_ms,
            seconds=round(message.seconds, 3),
            moved=message.moved,
            trail=message.trail or [],
        )


class Branch(Summary):
    """A conversation and the branch that is shown.

    `seen_from`: the id of the first message that the model saw for the branch's latest answer;
    null: all.
    """

    seen_from: int | None


class Conversation(Branch):
    """A conversation with all its messages, of all branches, in the order of their ids.

    `version`: compared with the one in the event `ready` of /api/events, it shows missed changes.
    `preset`: the name of the one that says how answers are wanted here; empty for none.
    """

    messages: list[Message]
    version: str
    preset: str


class Turn(Schema):
    """The user's message, and the answer that has begun."""

    user_message: Message
    assistant_message: Message


class Model(Schema):
    """A model, and the nodes that serve it now.

    `waiting`: jobs in line for it. `context`: its longest prompt and answer together, in tokens;
    null where no node has said it. `description`: the operator's. `longest_answer`: the most tokens
    that operators allow; null: any number. `paused`: it takes no new messages now, for
    `pause_reason`.
    """

    id: str
    ready: bool
    nodes: int
    slots: int
    free: int
    waiting: int
    context: int | None
    paused: bool
    pause_reason: str
    description: str
    longest_answer: int | None


class Models(Schema):
    """All models."""

    models: list[Model]
    default: str | None
