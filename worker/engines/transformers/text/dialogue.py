"""The same dialogue in the forms that chat templates want. Pure.

Some templates take any list of turns. Others want one system turn and no more, or none; or that
user and assistant take turns, the user first. Instead of refusing a dialogue, it is put the way the
model was trained on.
"""

from collections.abc import Iterator

import msgspec

from broker.wire import ChatMessage, Role

BETWEEN = "\n\n"  # contents that become one turn


def forms(messages: tuple[ChatMessage, ...]) -> Iterator[tuple[ChatMessage, ...]]:
    """The dialogue as it is, and then in ever stricter forms; at most four, each other than the one
    before.
    """
    said = _without_silence(messages)
    merged = _merged(said)
    alternating = _alternating(merged)
    latest: tuple[ChatMessage, ...] | None = None
    for form in (said, merged, alternating, _system_in_first_turn(alternating)):
        if form != latest:
            yield form
        latest = form


def leading_systems(messages: tuple[ChatMessage, ...]) -> int:
    """How many system turns come before all others."""
    for number, message in enumerate(messages):
        if message.role != "system":
            return number
    return len(messages)


def _without_silence(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Without empty turns of the assistant: an answer that was stopped before its first word."""
    said = [
        message for message in messages if message.role != "assistant" or message.content.strip()
    ]
    return tuple(said) or (ChatMessage(role="user", content=""),)


def _merged(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Neighbouring turns of one role become one."""
    grouped: list[tuple[Role, list[str]]] = []
    for message in messages:
        if not grouped or grouped[-1][0] != message.role:
            grouped.append((message.role, []))
        grouped[-1][1].append(message.content)
    return tuple(
        ChatMessage(role=role, content=BETWEEN.join(contents)) for role, contents in grouped
    )


def _alternating(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """At most one system turn, at the beginning; then user and assistant in turn, the user first."""
    first = leading_systems(messages)
    turns = [
        msgspec.structs.replace(message, role="user") if message.role == "system" else message
        for message in messages[first:]
    ]
    if not turns or turns[0].role == "assistant":
        turns.insert(0, ChatMessage(role="user", content=""))
    return (*messages[:first], *_merged(tuple(turns)))


def _system_in_first_turn(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Of an alternating dialogue: the first user turn carries the system text."""
    if messages[0].role != "system":
        return messages
    system, user, *rest = messages
    contents = [content for content in (system.content, user.content) if content]
    return (ChatMessage(role="user", content=BETWEEN.join(contents)), *rest)
