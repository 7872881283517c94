"""Every query of the chat. A user's objects are only ever reached through the user."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.db import IntegrityError, transaction
from django.utils import timezone

from api import process
from api.accounts.models import User
from api.chat.context import last_turns, title_from
from api.chat.models import UNTITLED, Conversation, Message, Role, Status
from api.errors import ApiError
from broker.wire import ChatMessage

SILENT = timedelta(seconds=30)  # an answer whose owner has not touched it for this long has no owner any more
INTERRUPTED = "interrupted: the service was restarted while it wrote this answer"


async def conversation(user: User, number: int) -> Conversation:
    """The user's conversation. Raises ApiError 404, also for somebody else's."""
    found = await Conversation.objects.filter(user=user, pk=number).afirst()
    if found is None:
        raise ApiError(404, "there is no such conversation")
    return found


async def message(user: User, conversation: int, number: int) -> Message:
    """A message of the user's conversation. Raises ApiError 404."""
    found = await Message.objects.filter(conversation__user=user, conversation=conversation, pk=number).afirst()
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
    """What the user wrote and the answer to it; `former`: the conversation's fields before."""

    conversation: Conversation
    asked: Message
    answer: Message
    former: dict[str, Any]


@sync_to_async
@transaction.atomic
def begin_turn(conversation: Conversation, content: str, model: str, request_id: str) -> Turn:
    """Stores what the user wrote and an empty answer to it. Raises ApiError 409 while another one is written."""
    former = {name: getattr(conversation, name) for name in ("title", "model", "updated")}
    asked = Message.objects.create(conversation=conversation, role=Role.USER, content=content)
    try:
        answer = Message.objects.create(
            conversation=conversation,
            role=Role.ASSISTANT,
            status=Status.STREAMING,
            request_id=request_id,
            owner=process.identity(),
        )
    except IntegrityError as error:
        raise ApiError(409, "an answer is still being written in this conversation") from error
    if conversation.title == UNTITLED:
        conversation.title = title_from(content)
    conversation.model = model
    conversation.save()
    return Turn(conversation, asked, answer, former)


@sync_to_async
def context(conversation: Conversation) -> list[ChatMessage]:
    """The newest turns of the conversation, oldest first, as a model gets them."""
    rows = conversation.messages.exclude(content="").order_by("-pk").values_list("role", "content")[:1000]
    return last_turns(ChatMessage(role=role, content=content) for role, content in rows.iterator(chunk_size=50))


@sync_to_async
@transaction.atomic
def undo_turn(turn: Turn) -> None:
    """Removes a turn that the broker did not take."""
    Message.objects.filter(pk__in=[turn.asked.pk, turn.answer.pk]).delete()
    Conversation.objects.filter(pk=turn.conversation.pk).update(**turn.former)


async def save_answer(answer: Message) -> bool:
    """Stores an answer as far as it is written; False if somebody has stopped or removed it meanwhile."""
    changed = await Message.objects.filter(pk=answer.pk, status=Status.STREAMING).aupdate(
        content=answer.content,
        status=answer.status,
        error=answer.error,
        finish_reason=answer.finish_reason,
        completion_tokens=answer.completion_tokens,
        touched=timezone.now(),
    )
    return bool(changed)


async def save_text(answer: Message) -> None:
    """Stores the text of an answer that another process has ended meanwhile."""
    await Message.objects.filter(pk=answer.pk).aupdate(content=answer.content)


async def stop_elsewhere(answer: Message) -> None:
    """Stops an answer that another API process writes: it notices when it saves the next time."""
    await Message.objects.filter(pk=answer.pk, status=Status.STREAMING).aupdate(
        status=Status.STOPPED, finish_reason="cancelled"
    )


@sync_to_async
def fail_orphans(conversation: int | None = None) -> int:
    """Ends the answers whose process is gone; returns how many. With `conversation`, looks only there."""
    streaming = Message.objects.filter(status=Status.STREAMING)
    if conversation is not None:
        streaming = streaming.filter(conversation=conversation)
    oldest = timezone.now() - SILENT
    orphans = [
        pk
        for pk, owner, touched in streaming.values_list("pk", "owner", "touched")
        if touched < oldest or not process.may_live(owner)
    ]
    ended = streaming.filter(pk__in=orphans).update(status=Status.FAILED, error=INTERRUPTED)
    return int(ended)
