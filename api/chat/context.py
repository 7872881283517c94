"""What a model gets to see of a conversation, and where that begins.

The serving node cuts by tokens (`Job.truncate`): it alone has the tokenizer. What is left out here
is only what cannot fit whatever the tokenizer, so that a job stays small.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from api.settings import MAX_BODY
from broker.wire import ChatMessage, Role

BYTES_PER_TOKEN = 16  # UTF-8, more than the mean of any text that people write, in any script
TURN_BYTES = 16  # that a turn takes at least, whatever it says: a chat template's markers
UNKNOWN_CONTEXT_BYTES = 24_000  # where no node tells its context: about 6,000 tokens
TITLE_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message of a conversation, as far as a model is concerned. `refused`: an answer that was not made because
    the message before it does not fit into the model's context.
    """

    id: int
    role: Role
    content: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The newest messages of a conversation, oldest first.

    `first`: the id of the oldest of them; None if nothing is left out.
    """

    messages: list[StoredMessage]
    first: int | None


def byte_limit(context_length: int) -> int:
    """Bytes of a conversation that may fit into a context of so many tokens; 0: unknown."""
    if context_length <= 0:
        return UNKNOWN_CONTEXT_BYTES
    return min(context_length * BYTES_PER_TOKEN, MAX_BODY)


def newest(newest_first: Iterable[StoredMessage], limit: int) -> Excerpt:
    """The newest messages that fit into `limit` bytes, and the newest one always.

    The first one is the user's: a dialogue that starts with an answer confuses chat templates.
    """
    kept: list[StoredMessage] = []
    size = 0
    cut = False
    for message in _worth_sending(newest_first):
        size += len(message.content.encode()) + TURN_BYTES
        if kept and size > limit:
            cut = True
            break
        kept.append(message)
    while len(kept) > 1 and kept[-1].role != "user":
        kept.pop()
        cut = True
    kept.reverse()
    return Excerpt(kept, kept[0].id if cut else None)


def _worth_sending(newest_first: Iterable[StoredMessage]) -> Iterable[StoredMessage]:
    """All but empty answers and questions that were too long: they would be for ever."""
    refused = False
    for message in newest_first:
        unanswerable, refused = refused, message.refused
        if message.content.strip() and not unanswerable:
            yield message


def turns(messages: Iterable[StoredMessage]) -> list[list[StoredMessage]]:
    """The messages by turns: neighbours of one role are one, as templates want roles to alternate."""
    found: list[list[StoredMessage]] = []
    for message in messages:
        if found and found[-1][-1].role == message.role:
            found[-1].append(message)
        else:
            found.append([message])
    return found


def dialogue(messages: Iterable[StoredMessage]) -> list[ChatMessage]:
    """The turns as nodes read them. A question that was asked again is there once."""
    found: list[ChatMessage] = []
    for turn in turns(messages):
        texts: dict[str, None] = {}
        for message in turn:
            texts.pop(message.content, None)
            texts[message.content] = None  # as the newest
        found.append(ChatMessage(role=turn[0].role, content="\n\n".join(texts)))
    return found


def first_seen(
    sent: Sequence[StoredMessage], first_sent: int | None, omitted_turns: int
) -> int | None:
    """The id of the first message that the model has seen; None if it has seen all.

    `sent`: the conversation from `first_sent` (None: its beginning) to the question. The node left out the first
    `omitted_turns` turns of it.
    """
    if omitted_turns <= 0:
        return first_sent
    seen = turns(reversed(list(_worth_sending(reversed(sent)))))
    return seen[min(omitted_turns, len(seen) - 1)][0].id if seen else first_sent


def title_from(text: str) -> str:
    """A conversation's title: the first message's beginning, on one line, cut at a word."""
    line = " ".join(text.split())
    if len(line) <= TITLE_CHARACTERS:
        return line
    cut = line[:TITLE_CHARACTERS]
    return (cut.rpartition(" ")[0] or cut) + "…"
