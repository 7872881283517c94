"""Every query of the chat. A user's objects are only ever reached through the user."""

from dataclasses import dataclass
from typing import Any

from asgiref.sync import sync_to_async
from django.db import IntegrityError, transaction

from api import submission
from api.accounts.models import User
from api.chat.context import last_turns, title_from
from api.chat.models import UNTITLED, Conversation, Message, Role
from api.errors import ApiError
from broker.wire import ChatMessage, Job


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
    """What the user wrote, the answer to it, and the job that makes it; `former`: the conversation's fields before."""

    conversation: Conversation
    asked: Message
    answer: Message
    job: Job
    former: dict[str, Any]


@sync_to_async
@transaction.atomic
def begin_turn(conversation: Conversation, content: str, model: str, user: User) -> Turn:
    """Stores what the user wrote and an empty answer to it. Raises ApiError 409 while another one is written."""
    former = {name: getattr(conversation, name) for name in ("title", "model", "updated")}
    asked = Message.objects.create(conversation=conversation, role=Role.USER, content=content)
    job = submission.chat_job(model, _context(conversation), submission.CONVERSATION, user)
    answer = Message(conversation=conversation, role=Role.ASSISTANT)
    job = answer.start(job)
    try:
        answer.save(force_insert=True)
    except IntegrityError as error:
        raise ApiError(409, "an answer is still being written in this conversation") from error
    if conversation.title == UNTITLED:
        conversation.title = title_from(content)
    conversation.model = model
    conversation.save()
    return Turn(conversation, asked, answer, job, former)


def _context(conversation: Conversation) -> list[ChatMessage]:
    """The newest turns of the conversation, oldest first, as a model gets them."""
    rows = conversation.messages.exclude(content="").order_by("-pk").values_list("role", "content")[:1000]
    return last_turns(ChatMessage(role=role, content=content) for role, content in rows.iterator(chunk_size=50))


@sync_to_async
@transaction.atomic
def undo_turn(turn: Turn) -> None:
    """Removes a turn that the broker did not take."""
    Message.objects.filter(pk__in=[turn.asked.pk, turn.answer.pk]).delete()
    Conversation.objects.filter(pk=turn.conversation.pk).update(**turn.former)
