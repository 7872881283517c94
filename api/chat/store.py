"""Every query of the chat. A user's rows are only ever reached through the user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asgiref.sync import sync_to_async
from django.db import IntegrityError, transaction
from django.utils import timezone

from api.accounts.models import User
from api.chat import history
from api.chat.history import Excerpt, StoredMessage
from api.chat.models import UNTITLED, Conversation, Message, Role, Status
from api.context import app
from api.errors import ApiError
from api.requests.build import CONVERSATION, chat_job
from broker.wire import Job


async def conversation(user: User, number: int) -> Conversation:
    """The user's conversation. Raises ApiError 404, also for somebody else's."""
    conversation = await Conversation.objects.filter(user=user, pk=number).afirst()
    if conversation is None:
        raise _no_conversation()
    return conversation


async def create(user: User, model: str) -> Conversation:
    """A new conversation. Raises ApiError 401 if the account was removed: keys are cached."""
    try:
        return await Conversation.objects.acreate(user=user, model=model)
    except IntegrityError as error:
        raise ApiError(401, "this account was removed") from error


async def change(user: User, number: int, title: str | None, model: str | None) -> Conversation:
    """Changes title and model of the user's conversation, unless None. Raises ApiError 404."""
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
    """Deletes the user's conversation; returns its unfinished answers. Raises ApiError 404."""
    conversation = _locked(user, number)
    unfinished = list(conversation.messages.filter(status=Status.STREAMING))
    conversation.delete()
    return unfinished


async def message(user: User, conversation: int, number: int) -> Message:
    """A message of the user's conversation. Raises ApiError 404."""
    rows = Message.objects.filter(conversation__user=user, conversation=conversation, pk=number)
    message = await rows.afirst()
    if message is None:
        raise ApiError(404, "there is no such message")
    return message


async def conversations(user: User) -> list[Conversation]:
    """The user's conversations, newest first."""
    return [row async for row in Conversation.objects.filter(user=user)]


async def messages(conversation: Conversation) -> list[Message]:
    """A conversation's messages in order."""
    return [row async for row in conversation.messages.all()]


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, its answer, and the answer's job; `former`: the conversation's fields before."""

    conversation: Conversation
    question: Message
    answer: Message
    job: Job
    former: dict[str, Any]


async def begin_turn(user: User, number: int, content: str, model: str | None) -> Turn:
    """Stores a question and an empty answer to it; `model`: None for the conversation's own.

    Raises ApiError 404, and 409 while another answer is being written.
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
    question = Message.objects.create(conversation=conversation, role=Role.USER, content=content)
    excerpt = _excerpt(conversation, history.byte_limit(lengths.get(model, 0)))
    dialogue = history.dialogue(excerpt.messages)
    job = chat_job(model, dialogue, CONVERSATION, user, truncate=True)
    answer = Message(conversation=conversation, role=Role.ASSISTANT, first_sent=excerpt.first)
    job = answer.start(job)
    try:
        answer.save(force_insert=True)
    except IntegrityError as error:
        raise ApiError(409, "an answer is still being written in this conversation") from error
    if conversation.title == UNTITLED:
        conversation.title = history.title_from(content)
    conversation.model = model
    conversation.updated = timezone.now()
    conversation.save(update_fields=["title", "model", "updated"])
    return Turn(conversation, question, answer, job, former)


def _excerpt(conversation: Conversation, limit: int) -> Excerpt:
    """The part of the conversation that may fit into `limit` bytes."""
    rows = conversation.messages.only(*_HISTORY_FIELDS).order_by("-pk").iterator(chunk_size=50)
    return history.newest(map(as_stored, rows), limit)


async def seen_from(answer: Message, omitted_messages: int) -> int | None:
    """The first message that the model saw for this answer; None if it saw all before it."""
    if omitted_messages <= 0:
        return answer.first_sent
    rows = Message.objects.filter(conversation=answer.conversation_id, pk__lt=answer.pk)
    if answer.first_sent is not None:
        rows = rows.filter(pk__gte=answer.first_sent)
    sent = [as_stored(row) async for row in rows.only(*_HISTORY_FIELDS)]
    return history.first_seen(sent, answer.first_sent, omitted_messages)


def seen_from_latest(messages: Sequence[Message]) -> int | None:
    """The same for the latest complete answer; `messages`: the whole conversation, in order."""
    for position in reversed(range(len(messages))):
        answer = messages[position]
        if answer.role == Role.ASSISTANT and answer.status == Status.DONE:
            first = answer.first_sent or 0
            sent = [as_stored(row) for row in messages[:position] if row.pk >= first]
            return history.first_seen(sent, answer.first_sent, answer.omitted_messages)
    return None


_HISTORY_FIELDS = ("role", "content", "status", "error_code")


def as_stored(row: Message) -> StoredMessage:
    """The message as history.py has it."""
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
    """Removes a turn whose job was refused. What others have changed meanwhile stays."""
    Message.objects.filter(pk__in=[turn.question.pk, turn.answer.pk]).delete()
    written = {name: getattr(turn.conversation, name) for name in turn.former}
    Conversation.objects.filter(pk=turn.conversation.pk, **written).update(**turn.former)


def _locked(user: User, number: int) -> Conversation:
    """The user's conversation, locked until the transaction ends. Raises ApiError 404.

    (SQLite has no row locks; there the transaction has locked the whole database.)
    """
    conversation = Conversation.objects.select_for_update().filter(user=user, pk=number).first()
    if conversation is None:
        raise _no_conversation()
    return conversation


def _no_conversation() -> ApiError:
    return ApiError(404, "there is no such conversation")
