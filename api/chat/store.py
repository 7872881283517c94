"""Every query of the chat. A user's objects are only ever reached through the user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asgiref.sync import sync_to_async
from django.db import IntegrityError, transaction
from django.utils import timezone

from api.accounts.models import User
from api.chat import context
from api.chat.context import Excerpt, StoredMessage
from api.chat.models import UNTITLED, Conversation, Message, Role, Status
from api.context import app
from api.errors import ApiError
from api.requests import build
from broker.wire import Job


async def conversation(user: User, number: int) -> Conversation:
    """The user's conversation. Raises ApiError 404, also for somebody else's."""
    found = await Conversation.objects.filter(user=user, pk=number).afirst()
    if found is None:
        raise _no_conversation()
    return found


async def create(user: User, model: str) -> Conversation:
    """A new conversation. Raises ApiError 401 if the account was removed: a key is believed for some seconds more."""
    try:
        return await Conversation.objects.acreate(user=user, model=model)
    except IntegrityError as error:
        raise ApiError(401, "this account was removed") from error


async def change(user: User, number: int, title: str | None, model: str | None) -> Conversation:
    """Renames the user's conversation or gives it another model; None leaves it as it is. Raises ApiError 404."""
    changes: dict[str, Any] = {"updated": timezone.now()}
    if title is not None:
        changes["title"] = title
    if model is not None:
        changes["model"] = model
    if not await Conversation.objects.filter(user=user, pk=number).aupdate(**changes):
        raise _no_conversation()
    return await conversation(user, number)


@sync_to_async
@transaction.atomic
def delete(user: User, number: int) -> list[Message]:
    """Deletes the user's conversation; returns its answers that were still being written. Raises ApiError 404."""
    found = _locked(user, number)
    unfinished = list(found.messages.filter(status=Status.STREAMING))
    found.delete()
    return unfinished


async def message(user: User, conversation: int, number: int) -> Message:
    """A message of the user's conversation. Raises ApiError 404."""
    found = await Message.objects.filter(
        conversation__user=user, conversation=conversation, pk=number
    ).afirst()
    if found is None:
        raise ApiError(404, "there is no such message")
    return found


async def conversations(user: User) -> list[Conversation]:
    """The user's conversations, newest first."""
    return [each async for each in Conversation.objects.filter(user=user)]


async def messages(conversation: Conversation) -> list[Message]:
    """A conversation's messages in order."""
    return [each async for each in conversation.messages.all()]


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user wrote, the answer to it, and the job that makes it; `former`: the conversation's fields before."""

    conversation: Conversation
    asked: Message
    answer: Message
    job: Job
    former: dict[str, Any]


async def begin_turn(user: User, number: int, content: str, model: str | None) -> Turn:
    """Stores what the user wrote and an empty answer to it; `model`: None for the conversation's own.

    Raises ApiError 404, and 409 while another answer is written.
    """
    return await _begin_turn(user, number, content, model, app().catalog.context_lengths())


@sync_to_async
@transaction.atomic
def _begin_turn(
    user: User, number: int, content: str, model: str | None, lengths: Mapping[str, int]
) -> Turn:
    conversation = _locked(user, number)
    model = model or conversation.model
    former = {name: getattr(conversation, name) for name in ("title", "model", "updated")}
    asked = Message.objects.create(conversation=conversation, role=Role.USER, content=content)
    excerpt = _excerpt(conversation, context.byte_limit(lengths.get(model, 0)))
    job = build.chat_job(
        model, context.dialogue(excerpt.messages), build.CONVERSATION, user, truncate=True
    )
    answer = Message(conversation=conversation, role=Role.ASSISTANT, first_sent=excerpt.first)
    job = answer.start(job)
    try:
        answer.save(force_insert=True)
    except IntegrityError as error:
        raise ApiError(409, "an answer is still being written in this conversation") from error
    if conversation.title == UNTITLED:
        conversation.title = context.title_from(content)
    conversation.model = model
    conversation.updated = timezone.now()
    conversation.save(update_fields=["title", "model", "updated"])
    return Turn(conversation, asked, answer, job, former)


def _excerpt(conversation: Conversation, limit: int) -> Excerpt:
    """What of the conversation may fit into a model's context, in `limit` bytes."""
    rows = conversation.messages.only(*_OF_CONTEXT).order_by("-pk").iterator(chunk_size=50)
    return context.newest((as_stored(each) for each in rows), limit)


async def seen_from(answer: Message, omitted_messages: int) -> int | None:
    """The first message that the model saw when it gave this answer; None if it saw all before."""
    if omitted_messages <= 0:
        return answer.first_sent
    rows = Message.objects.filter(conversation=answer.conversation_id, pk__lt=answer.pk).only(
        *_OF_CONTEXT
    )
    if answer.first_sent is not None:
        rows = rows.filter(pk__gte=answer.first_sent)
    sent = [as_stored(each) async for each in rows]
    return context.first_seen(sent, answer.first_sent, omitted_messages)


def seen_from_latest(messages: Sequence[Message]) -> int | None:
    """The same of the latest answer that is complete; `messages`: the whole conversation, in order."""
    for position in reversed(range(len(messages))):
        answer = messages[position]
        if answer.role == Role.ASSISTANT and answer.status == Status.DONE:
            sent = [
                as_stored(each)
                for each in messages[:position]
                if each.pk >= (answer.first_sent or 0)
            ]
            return context.first_seen(sent, answer.first_sent, answer.omitted_messages)
    return None


_OF_CONTEXT = ("role", "content", "status", "error_code")


def as_stored(row: Message) -> StoredMessage:
    """The message as the rules of a model's context see it."""
    failed = row.status == Status.FAILED and not row.content
    return StoredMessage(
        id=row.pk,
        role="user" if row.role == Role.USER else "assistant",
        content=row.content,
        refused=failed and row.error_code == "too_long",
    )


@sync_to_async
@transaction.atomic
def undo_turn(turn: Turn) -> None:
    """Removes a turn that the broker did not take. What somebody else has changed meanwhile stays."""
    Message.objects.filter(pk__in=[turn.asked.pk, turn.answer.pk]).delete()
    written = {name: getattr(turn.conversation, name) for name in turn.former}
    Conversation.objects.filter(pk=turn.conversation.pk, **written).update(**turn.former)


def _locked(user: User, number: int) -> Conversation:
    """The user's conversation, which nobody else changes or deletes until the transaction ends. Raises ApiError 404.

    (SQLite has no locks of rows; there a transaction has the whole database from its start.)
    """
    found = Conversation.objects.select_for_update().filter(user=user, pk=number).first()
    if found is None:
        raise _no_conversation()
    return found


def _no_conversation() -> ApiError:
    return ApiError(404, "there is no such conversation")
