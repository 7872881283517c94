"""What a model gets to see of a conversation."""

from collections.abc import Iterable

from broker.wire import ChatMessage

CONTEXT_CHARACTERS = 24_000  # about 6,000 tokens: fits the small models this serves by default
TITLE_CHARACTERS = 60


def last_turns(newest_first: Iterable[ChatMessage], limit: int = CONTEXT_CHARACTERS) -> list[ChatMessage]:
    """The newest turns that fit into `limit` characters, oldest first; the newest one always.

    The first turn is the user's: a dialogue that starts with an answer confuses chat templates.
    """
    turns: list[ChatMessage] = []
    size = 0
    for turn in newest_first:
        size += len(turn.content)
        if turns and size > limit:
            break
        turns.append(turn)
    while len(turns) > 1 and turns[-1].role != "user":
        turns.pop()
    return turns[::-1]


def title_from(text: str) -> str:
    """A conversation's title: the first message's beginning, on one line, cut at a word."""
    line = " ".join(text.split())
    if len(line) <= TITLE_CHARACTERS:
        return line
    cut = line[:TITLE_CHARACTERS]
    return (cut.rpartition(" ")[0] or cut) + "…"
