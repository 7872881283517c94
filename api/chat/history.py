"""The part of a conversation that is sent to the model, and where it begins.

The serving node truncates by tokens (`Job.truncate`): only it has the tokenizer. Omitted here is
what cannot fit with any tokenizer, so that a job stays small.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from api.settings import MAX_BODY
from broker.wire import ChatMessage, Role

BYTES_PER_TOKEN = 16  # UTF-8: more than the mean of natural text in any script
TURN_BYTES = 16  # at least, for a turn's markers in the chat template
UNKNOWN_CONTEXT_BYTES = 24_000  # about 6,000 tokens, where no node tells its context length
TITLE_CHARACTERS = 60
_WORD = re.compile(r"\w\w")


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message of a conversation.

    `refused`: an answer that failed because the question before it exceeds the model's context.
    """

    id: int
    role: Role
    content: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The newest messages of a conversation, oldest first.

    `first`: the id of the oldest of them; None if nothing is omitted.
    """

    messages: list[StoredMessage]
    first: int | None


def byte_limit(context_length: int) -> int:
    """Bytes of a conversation that may fit into a context of so many tokens; 0: unknown."""
    if context_length <= 0:
        return UNKNOWN_CONTEXT_BYTES
    return min(context_length * BYTES_PER_TOKEN, MAX_BODY)


def newest(newest_first: Iterable[StoredMessage], limit: int) -> Excerpt:
    """The newest messages that fit into `limit` bytes, and always the newest one.

    The first is the user's: a dialogue that starts with an answer confuses chat templates.
    """
    messages: list[StoredMessage] = []
    size = 0
    cut = False
    for message in _worth_sending(newest_first):
        size += len(message.content.encode()) + TURN_BYTES
        if messages and size > limit:
            cut = True
            break
        messages.append(message)
    while len(messages) > 1 and messages[-1].role != "user":
        messages.pop()
        cut = True
    messages.reverse()
    return Excerpt(messages, messages[0].id if cut else None)


def _worth_sending(newest_first: Iterable[StoredMessage]) -> Iterable[StoredMessage]:
    """All but empty answers and questions that were refused: those can never fit."""
    refused = False  # was the answer to the next message?
    for message in newest_first:
        unanswerable, refused = refused, message.refused
        if message.content.strip() and not unanswerable:
            yield message


def turns(messages: Iterable[StoredMessage]) -> list[list[StoredMessage]]:
    """Neighbours of one role as one turn: templates want roles to alternate."""
    grouped: list[list[StoredMessage]] = []
    for message in messages:
        if grouped and grouped[-1][-1].role == message.role:
            grouped[-1].append(message)
        else:
            grouped.append([message])
    return grouped


def dialogue(messages: Iterable[StoredMessage]) -> list[ChatMessage]:
    """The turns as nodes read them. A question that was repeated is included once."""
    dialogue: list[ChatMessage] = []
    for turn in turns(messages):
        texts: dict[str, None] = {}  # an ordered set
        for message in turn:
            texts.pop(message.content, None)
            texts[message.content] = None  # at the place of its latest repetition
        dialogue.append(ChatMessage(role=turn[0].role, content="\n\n".join(texts)))
    return dialogue


def first_seen(
    sent: Sequence[StoredMessage], first_sent: int | None, omitted_turns: int
) -> int | None:
    """The id of the first message that the model has seen; None if it has seen all.

    `sent`: the conversation from `first_sent` (None: its beginning) to the question. The node
    dropped the first `omitted_turns` turns of it.
    """
    if omitted_turns <= 0:
        return first_sent
    sendable = list(_worth_sending(reversed(sent)))
    sendable.reverse()
    seen = turns(sendable)
    if not seen:
        return first_sent
    return seen[min(omitted_turns, len(seen) - 1)][0].id


def title_from(text: str) -> str:
    """A conversation's title: the first message's first line with words, cut at a word."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    titles = [line.lstrip("#> ") for line in lines if _WORD.search(line)]
    line = titles[0] if titles else " ".join(text.split())
    if len(line) <= TITLE_CHARACTERS:
        return line
    cut = line[:TITLE_CHARACTERS]
    whole_words = cut.rpartition(" ")[0]
    return (whole_words or cut) + "…"
