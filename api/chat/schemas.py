"""Requests and responses of the chat's endpoints."""

from datetime import datetime
from typing import Annotated

from ninja import Schema
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from api.chat import models
from api.http.parsing import Body, StorableText


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "must not be empty")
    return text


Content = Annotated[StorableText, AfterValidator(_not_blank), Field(max_length=100_000)]
Title = Annotated[StorableText, AfterValidator(_not_blank), Field(max_length=200)]
ModelName = Annotated[StorableText, Field(min_length=1, max_length=200)]


class NewConversation(Body):
    """A new conversation."""

    model: ModelName | None = None


class ConversationChange(Body):
    """The fields of a conversation that can be changed."""

    title: Title | None = None
    model: ModelName | None = None


class NewMessage(Body):
    """A message of the user."""

    content: Content
    model: ModelName | None = None


class Summary(Schema):
    """A conversation in the list."""

    id: int
    title: str
    model: str
    updated: datetime


class Summaries(Schema):
    """A user's conversations, newest first."""

    conversations: list[Summary]


class Message(Schema):
    """One turn."""

    id: int
    role: models.Role
    content: str
    status: models.Status
    error: str | None
    created: datetime
    finish_reason: str | None


class Conversation(Summary):
    """A conversation with all its messages.

    `seen_from`: the id of the first message that the model saw for its latest answer; null: all.
    """

    messages: list[Message]
    seen_from: int | None


class Turn(Schema):
    """The user's message, and the answer that has begun."""

    user_message: Message
    assistant_message: Message


class Model(Schema):
    """A model, and the nodes that serve it now."""

    id: str
    ready: bool
    nodes: int
    slots: int
    free: int


class Models(Schema):
    """All models."""

    models: list[Model]
    default: str | None
