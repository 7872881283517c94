"""Questions and their answers: begun, answered again, continued, and undone if the job is refused.

All of it happens under the conversation's row lock, so two processes never begin two answers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from asgiref.sync import sync_to_async
from django.db import transaction
from django.utils import timezone

from api.accounts.models import User
from api.chat import history, store, tree
from api.chat.models import UNTITLED, Conversation, Message, Role, Status
from api.context import app
from api.errors import ApiError
from api.operate.models.store import Card
from api.preferences import store as preferences
from api.requests.build import CONVERSATION, chat_job
from broker.wire import ChatMessage, Job

ANSWERS_AT_ONCE = 2  # to one question, side by side
CONTINUATION_TOKENS = 1024  # more for an answer that was cut at the longest allowed length
_ENDING_FIELDS = ("status", "finish_reason", "error", "error_code", "retryable")
_RESTARTED_FIELDS = (
    *_ENDING_FIELDS,
    "first_sent",
    "model",
    "node",
    "trail",
    "ttft_ms",
    "request_id",
    "job",
    "owner",
    "touched",
)


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, its answer, and the answer's job.

    To undo it: `added` are the messages that are new, `former` the conversation's fields before,
    `former_answer` those of an answer that goes on.
    """

    conversation: Conversation
    question: Message
    answer: Message
    job: Job
    former: Mapping[str, Any]
    added: tuple[int, ...]
    former_answer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> tuple[int, ...]:
        """The messages that are new, or go on, in the order of their ids."""
        return tuple(sorted(self.added or (self.answer.pk,)))


@dataclass(frozen=True, slots=True)
class Draft:
    """A message to be sent. `model`: None for the conversation's own.

    `append`: it follows the head; otherwise it follows `parent` (None: nothing) as a new branch.
    `seen_head`: the leaf that the sender saw, if `checks_head`.
    """

    content: str
    attachments: Sequence[Mapping[str, str]] = ()
    model: str | None = None
    append: bool = True
    parent: int | None = None
    checks_head: bool = False
    seen_head: int | None = None

    @property
    def title_text(self) -> str:
        """What names a conversation that begins with this message."""
        if self.content.strip() or not self.attachments:
            return self.content
        return self.attachments[0]["name"]


async def ask(user: User, number: int, draft: Draft) -> Turn:
    """Stores a question and an empty answer to it.

    Raises ApiError 404, and 409 while another answer is being written or if the sender's view is
    stale.
    """
    return await _ask(user, number, draft, app().catalog.context_lengths())


async def regenerate(
    user: User, number: int, message: int, model: str | None, *, beside: bool = False
) -> Turn:
    """Stores another empty answer to the question of this answer (or to this question).

    `beside`: it stands beside this answer, which stays the one that is shown. Raises ApiError 404,
    409 while too many answers are being written, and 400 for a question with nothing to compare.
    """
    lengths = app().catalog.context_lengths()
    return await _regenerate(user, number, message, model, beside, lengths)


async def resume(user: User, number: int, message: int) -> Turn:
    """Lets an answer go on that was stopped, has failed, or was cut at its longest length.

    Raises ApiError 404, and 409 if it cannot go on.
    """
    return await _resume(user, number, message, app().catalog.context_lengths(), app().cards.of)


class _Branches:
    """A locked conversation and the places of its messages."""

    def __init__(self, user: User, number: int) -> None:
        self.conversation = store.locked(user, number)
        nodes = store.nodes(self.conversation)
        self.parents = tree.parents_of(nodes)
        self.head = tree.head_of(nodes, self.conversation.head_id)
        for node in nodes:
            if node.unplaced:  # stored by the former release
                self._place(node.id)

    def _place(self, message: int) -> None:
        parent = self.parents[message]
        row = Message.objects.filter(pk=message)
        row.update(parent=parent, is_root=parent is None)

    def message(self, number: int) -> Message:
        """Raises ApiError 404."""
        message = self.conversation.messages.filter(pk=number).first()
        if message is None:
            raise store.no_message()
        message.parent_id = self.parents[number]
        return message

    def add_question(self, parent: int | None, draft: Draft) -> Message:
        """Stores a question."""
        message = Message.objects.create(
            conversation=self.conversation,
            role=Role.USER,
            parent_id=parent,
            is_root=parent is None,
            content=draft.content,
            attachments=list(draft.attachments) or None,
        )
        self.parents[message.pk] = parent
        return message

    def streaming(self) -> list[Message]:
        """The answers that are being written."""
        rows = self.conversation.messages.filter(status=Status.STREAMING)
        return list(rows.only("pk", "parent"))


@sync_to_async
@transaction.atomic
def _ask(user: User, number: int, draft: Draft, lengths: Mapping[str, int]) -> Turn:
    branches = _Branches(user, number)
    conversation = branches.conversation
    if draft.checks_head and draft.seen_head != branches.head:
        message = "this conversation has changed elsewhere; read it again, then send"
        raise ApiError(409, message, field="head", code="stale_view")
    if branches.streaming():
        raise _still_writing()
    parent = branches.head if draft.append else draft.parent
    if parent is not None and parent not in branches.parents:
        raise store.no_message("parent")
    former = _fields_of(conversation)
    question = branches.add_question(parent, draft)
    model = draft.model or conversation.model
    answer, job = _new_answer(branches, question, model, user, lengths)
    if conversation.title == UNTITLED:
        conversation.title = history.title_from(draft.title_text)
    conversation.model = model
    _show(conversation, answer)
    added = (answer.pk, question.pk)
    return Turn(conversation, question, answer, job, former, added)


@sync_to_async
@transaction.atomic
def _regenerate(
    user: User,
    number: int,
    message: int,
    model: str | None,
    beside: bool,
    lengths: Mapping[str, int],
) -> Turn:
    branches = _Branches(user, number)
    former_version = branches.message(message)
    question = _question_of(branches, former_version)
    if beside and former_version.pk == question.pk:
        message_text = "beside: this message is a question"
        raise ApiError(400, message_text, field="beside", code="invalid_value")
    _check_room(branches, question)
    conversation = branches.conversation
    former = _fields_of(conversation)
    answer, job = _new_answer(branches, question, model or conversation.model, user, lengths)
    if beside:
        answer.beside = former_version.beside or former_version.pk
        answer.save(update_fields=["beside"])
    _show(conversation, answer)
    return Turn(conversation, question, answer, job, former, (answer.pk,))


@sync_to_async
@transaction.atomic
def _resume(
    user: User,
    number: int,
    message: int,
    lengths: Mapping[str, int],
    card_of: Callable[[str], Card],
) -> Turn:
    branches = _Branches(user, number)
    conversation = branches.conversation
    answer = branches.message(message)
    question = _question_of(branches, answer)
    if answer.role != Role.ASSISTANT or not _is_unfinished(answer):
        raise ApiError(409, "this answer is complete", code="not_continuable")
    if tree.has_children(branches.parents, answer.pk):
        message_text = "a later message follows this answer"
        raise ApiError(409, message_text, code="not_continuable")
    _check_room(branches, question)
    former = _fields_of(conversation)
    former_answer = {name: getattr(answer, name) for name in _RESTARTED_FIELDS}
    cut_by_length = answer.finish_reason == "length"
    answer.model = answer.model or conversation.model
    if cut_by_length:
        _check_length(answer, card_of(answer.model).most_tokens)
    job = _job(branches, question, answer, user, lengths)
    if cut_by_length:
        most = answer.completion_tokens + CONTINUATION_TOKENS
        sampling = msgspec.structs.replace(job.sampling, max_tokens=most)
        job = msgspec.structs.replace(job, sampling=sampling)
    answer.finish_reason, answer.error, answer.error_code = None, None, ""
    answer.retryable, answer.node, answer.ttft_ms, answer.trail = False, "", None, None
    job = answer.start(msgspec.structs.replace(job, delivered=answer.content))
    answer.touched = timezone.now()
    answer.save(update_fields=_RESTARTED_FIELDS)
    _show(conversation, answer)
    return Turn(conversation, question, answer, job, former, (), former_answer)


def _check_room(branches: _Branches, question: Message) -> None:
    """Raises ApiError 409 if no other answer to this question may be written now."""
    streaming = branches.streaming()
    others = [answer for answer in streaming if answer.parent_id != question.pk]
    if others or len(streaming) >= ANSWERS_AT_ONCE:
        raise _still_writing()


def _check_length(answer: Message, most: int | None) -> None:
    """Raises ApiError 409 if the answer is as long as the model's operators allow."""
    if most is not None and answer.completion_tokens >= most:
        reason = f"answers of {answer.model!r} have at most {most} tokens"
        raise ApiError(409, reason, code="not_continuable")


def _is_unfinished(answer: Message) -> bool:
    if answer.status == Status.DONE:
        return answer.finish_reason == "length"
    return answer.status in (Status.STOPPED, Status.FAILED)


def _question_of(branches: _Branches, message: Message) -> Message:
    """The message itself, if it is a question. Raises ApiError 404 for an answer to nothing."""
    if message.role == Role.USER:
        return message
    if message.parent_id is None:
        raise store.no_message()
    return branches.message(message.parent_id)


def _new_answer(
    branches: _Branches, question: Message, model: str, user: User, lengths: Mapping[str, int]
) -> tuple[Message, Job]:
    answer = Message(
        conversation=branches.conversation,
        role=Role.ASSISTANT,
        parent=question,
        model=model,
    )
    job = answer.start(_job(branches, question, answer, user, lengths))
    answer.save(force_insert=True)
    return answer, job


def _job(
    branches: _Branches,
    question: Message,
    answer: Message,
    user: User,
    lengths: Mapping[str, int],
) -> Job:
    """The job of an answer to the question; the answer gets to know where its prompt begins."""
    path = tree.path_to(branches.parents, question.pk)
    style = preferences.effective(user, branches.conversation.pk)
    limit = history.byte_limit(lengths.get(answer.model, 0)) - len(style.instructions.encode())
    excerpt = store.excerpt(branches.conversation, path, limit)
    answer.first_sent = excerpt.first
    dialogue = history.dialogue(excerpt.messages)
    if style.instructions:
        dialogue.insert(0, ChatMessage(role="system", content=style.instructions))
    sampling = style.sampling(CONVERSATION)
    return chat_job(answer.model, dialogue, sampling, user, truncate=True)


def _fields_of(conversation: Conversation) -> dict[str, Any]:
    return {name: getattr(conversation, name) for name in ("title", "model", "updated", "head_id")}


def _show(conversation: Conversation, answer: Message) -> None:
    """Makes the answer's branch the one that is shown, or that of the answer that it is beside."""
    conversation.head_id = answer.beside or answer.pk
    conversation.updated = timezone.now()
    conversation.save(update_fields=["title", "model", "head", "updated"])


def _still_writing() -> ApiError:
    message = "an answer is still being written in this conversation"
    return ApiError(409, message, code="answer_in_progress")


@sync_to_async
@transaction.atomic
def undo(turn: Turn) -> None:
    """Removes a turn whose job was refused. What others have changed meanwhile stays."""
    # The head first: the deletion of the message that it names would set it to null.
    conversation = Conversation.objects.filter(pk=turn.conversation.pk)
    conversation.filter(head=turn.answer).update(head=turn.former["head_id"])
    written = _fields_of(turn.conversation) | {"head_id": turn.former["head_id"]}
    conversation.filter(**written).update(**turn.former)
    if turn.former_answer:
        answer = Message.objects.filter(pk=turn.answer.pk, request_id=turn.answer.request_id)
        answer.update(**turn.former_answer)
    Message.objects.filter(pk__in=turn.added).delete()
