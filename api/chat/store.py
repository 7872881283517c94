"""Every query of the chat. A user's rows are only ever reached through the user."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from asgiref.sync import sync_to_async
from django.db import IntegrityError, transaction
from django.db.models import Count, Max, Q
from django.utils import timezone

from api.accounts.models import User
from api.chat import history, tree
from api.chat.history import Excerpt, StoredMessage
from api.chat.models import Conversation, Message, Role, Status, TitledBy
from api.errors import ApiError
from api.plans.store import check_conversations


async def conversation(user: User, number: int) -> Conversation:
    """The user's conversation. Raises ApiError 404, also for somebody else's."""
    conversation = await Conversation.objects.filter(user=user, pk=number).afirst()
    if conversation is None:
        raise no_conversation()
    return conversation


@sync_to_async
def create(user: User, model: str, most: int | None, *, temporary: bool = False) -> Conversation:
    """A new conversation. `most`: that the user may have; None: any number.

    Raises ApiError 429, and 401 if the account was removed: keys are cached.
    """
    try:
        with transaction.atomic():
            check_conversations(user, most)
            return Conversation.objects.create(user=user, model=model, temporary=temporary)
    except IntegrityError as error:
        raise ApiError(401, "this account was removed", code="account_removed") from error


@sync_to_async
@transaction.atomic
def change(
    user: User, number: int, title: str | None, model: str | None, head: int | None
) -> tuple[Conversation, list[int]]:
    """Changes title, model and shown branch of the user's conversation, unless None.

    `head`: a message of the branch; the newest leaf below it is shown. Returns the conversation,
    and the answers whose comparison this choice has ended. Raises ApiError 404.
    """
    compared: list[int] = []
    conversation = locked(user, number)
    if title is not None:
        conversation.title, conversation.titled_by = title, TitledBy.USER
    if model is not None:
        conversation.model = model
    if head is not None:
        parents = tree.parents_of(nodes(conversation))
        if head not in parents:
            raise no_message("head")
        compared = _end_comparison(conversation, parents, head)
        conversation.head_id = tree.newest_leaf(_without_compared(conversation, parents), head)
    # Not `updated`: a new name is no reason to go to the top of the list.
    conversation.save(update_fields=["title", "titled_by", "model", "head"])
    return conversation, compared


def _end_comparison(conversation: Conversation, parents: tree.Parents, chosen: int) -> list[int]:
    """The answers that stood beside the chosen one, or beside which it stood, do so no more."""
    versions = [number for number, parent in parents.items() if parent == parents[chosen]]
    rows = conversation.messages.filter(pk__in=versions, beside__isnull=False)
    compared = list(rows.values_list("pk", flat=True))
    # Touched, so that a page that was away notices.
    conversation.messages.filter(pk__in=compared).update(beside=None, touched=timezone.now())
    return compared


def _without_compared(conversation: Conversation, parents: tree.Parents) -> tree.Parents:
    """The messages but for answers that stand beside another: the branch goes on from that one."""
    compared = conversation.messages.filter(beside__isnull=False)
    beside = set(compared.values_list("pk", flat=True))
    return {number: parent for number, parent in parents.items() if number not in beside}


async def message(user: User, conversation: int, number: int) -> Message:
    """A message of the user's conversation. Raises ApiError 404."""
    rows = Message.objects.filter(
        conversation__user=user,
        conversation__deleted_at__isnull=True,
        conversation=conversation,
        pk=number,
    )
    message = await rows.afirst()
    if message is None:
        raise no_message()
    return message


async def running(conversation: Conversation) -> list[Message]:
    """The conversation's answers that are being written."""
    rows = conversation.messages.filter(status=Status.STREAMING)
    return [row async for row in rows]


async def version(conversation: Conversation) -> str:
    """Changes whenever a reader of the conversation would see something else.

    The text of running answers is left out: who reads them gets all of it.
    """
    ended = ~Q(status=Status.STREAMING)
    rows = Message.objects.filter(conversation=conversation.pk)
    totals = await rows.aaggregate(
        count=Count("pk"),
        last=Max("pk"),
        running=Count("pk", filter=~ended),
        touched=Max("touched", filter=ended),
    )
    row = await Conversation.objects.filter(pk=conversation.pk).values_list().afirst()
    return hashlib.sha256(repr((row, sorted(totals.items()))).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation's messages in the order of their ids, each with its parent, and the head.

    `seen_from`: the first message that the model saw for the latest answer of the shown branch;
    None if it saw all.
    """

    messages: list[Message]
    head: int | None
    seen_from: int | None

    @property
    def branch(self) -> list[Message]:
        """The messages that are shown, from the first to the head."""
        by_id = {message.pk: message for message in self.messages}
        parents = {message.pk: message.parent_id for message in self.messages}
        return [by_id[number] for number in tree.path_to(parents, self.head)]


async def transcript(conversation: Conversation) -> Transcript:
    """Reads all branches."""
    messages = [row async for row in conversation.messages.all()]
    stored = [_node(message) for message in messages]
    parents = tree.parents_of(stored)
    for message in messages:
        message.parent_id = parents[message.pk]  # of rows of the former release, too
    head = tree.head_of(stored, conversation.head_id)
    by_id = {message.pk: message for message in messages}
    branch = [by_id[number] for number in tree.path_to(parents, head)]
    return Transcript(messages, head, _seen_from_latest(branch))


async def branch(conversation: Conversation) -> list[Message]:
    """The messages that are shown, from the first to the head."""
    return (await transcript(conversation)).branch


def nodes(conversation: Conversation) -> list[tree.Node]:
    """The places of the conversation's messages, in the order of their ids."""
    rows = conversation.messages.order_by("pk").values_list("pk", "parent_id", "is_root")
    return [tree.Node(*row) for row in rows]


def _node(message: Message) -> tree.Node:
    return tree.Node(message.pk, message.parent_id, message.is_root)


def excerpt(conversation: Conversation, path: Sequence[int], limit: int) -> Excerpt:
    """The newest messages of a path (root first) that may fit into `limit` bytes."""
    return history.newest(_newest_first(conversation, path), limit)


def _newest_first(conversation: Conversation, path: Sequence[int]) -> Iterator[StoredMessage]:
    rows = conversation.messages.only(*_HISTORY_FIELDS)
    for end in range(len(path), 0, -_ROWS_A_QUERY):
        ids = path[max(0, end - _ROWS_A_QUERY) : end]
        yield from map(as_stored, rows.filter(pk__in=ids).order_by("-pk"))


async def seen_from(answer: Message, omitted_messages: int) -> int | None:
    """The first message that the model saw for this answer; None if it saw all before it."""
    if omitted_messages <= 0:
        return answer.first_sent
    return await _seen_from(answer, omitted_messages)


@sync_to_async
def _seen_from(answer: Message, omitted_messages: int) -> int | None:
    parents = tree.parents_of(nodes(answer.conversation))
    path = tree.path_to(parents, answer.pk)[:-1]
    first = answer.first_sent or 0
    sent = [number for number in path if number >= first]
    rows = list(_newest_first(answer.conversation, sent))
    rows.reverse()
    return history.first_seen(rows, answer.first_sent, omitted_messages)


def _seen_from_latest(branch: Sequence[Message]) -> int | None:
    """The same for the latest complete answer of a branch, whose messages are in order."""
    for position in reversed(range(len(branch))):
        answer = branch[position]
        if answer.role == Role.ASSISTANT and answer.status == Status.DONE:
            first = answer.first_sent or 0
            sent = [as_stored(row) for row in branch[:position] if row.pk >= first]
            return history.first_seen(sent, answer.first_sent, answer.omitted_messages)
    return None


_HISTORY_FIELDS = (
    "role",
    "content",
    "reasoning_format",
    "attachments",
    "status",
    "error_code",
)
_ROWS_A_QUERY = 50


def as_stored(row: Message) -> StoredMessage:
    """The message as history.py has it."""
    failed = row.status == Status.FAILED and not row.content
    return StoredMessage(
        id=row.pk,
        role="user" if row.role == Role.USER else "assistant",
        content=row.prompt,
        refused=failed and row.error_code == "too_long",
    )


def locked(user: User, number: int) -> Conversation:
    """The user's conversation, locked until the transaction ends. Raises ApiError 404.

    (SQLite has no row locks; there the transaction has locked the whole database.)
    """
    conversation = Conversation.objects.select_for_update().filter(user=user, pk=number).first()
    if conversation is None:
        raise no_conversation()
    return conversation


def no_message(field: str | None = None) -> ApiError:
    """404; `field`: of the request, which names the message."""
    return ApiError(404, "there is no such message", field=field, code="not_found")


def no_conversation() -> ApiError:
    """404."""
    return ApiError(404, "there is no such conversation", code="not_found")
