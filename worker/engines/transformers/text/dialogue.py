"""The same dialogue in the forms that chat templates accept. Pure.

Some templates take any list of turns. Others want at most one system turn, or none, or user and
assistant in turn with the user first. A dialogue is put into the form that the model was trained on
instead of being refused.
"""

from collections.abc import Iterator

import msgspec

from broker.wire import ChatMessage, Role

SEPARATOR = "\n\n"  # between contents that become one turn


def forms(messages: tuple[ChatMessage, ...]) -> Iterator[tuple[ChatMessage, ...]]:
    """The dialogue as it is, then in ever stricter forms; at most five, no two in a row equal."""
    spoken = _without_empty_answers(messages)
    single = single_calls(spoken)
    merged = _merged(single)
    alternating = _alternating(merged)
    latest: tuple[ChatMessage, ...] | None = None
    for form in (spoken, single, merged, alternating, _system_in_first_turn(alternating)):
        if form != latest:
            yield form
        latest = form


def leading_systems(messages: tuple[ChatMessage, ...]) -> int:
    """How many system turns come before all others."""
    for number, message in enumerate(messages):
        if message.role != "system":
            return number
    return len(messages)


def single_calls(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Turns with several calls as a turn for each call, with its result behind it."""
    turns: list[ChatMessage] = []
    taken: set[int] = set()  # results that stand behind their calls already
    for number, message in enumerate(messages):
        if number in taken:
            continue
        if len(message.tool_calls) < 2:
            turns.append(message)
            continue
        results = _results(messages, number + 1)
        for index, call in enumerate(message.tool_calls):
            content, reasoning = ("", "") if index else (message.content, message.reasoning)
            turns.append(
                msgspec.structs.replace(
                    message, content=content, reasoning=reasoning, tool_calls=(call,)
                )
            )
            if call.id in results:
                taken.add(results[call.id])
                turns.append(messages[results[call.id]])
    return tuple(turns)


def _results(messages: tuple[ChatMessage, ...], first: int) -> dict[str, int]:
    """Where the results are that follow directly, by the ids of their calls."""
    results: dict[str, int] = {}
    for number in range(first, len(messages)):
        if messages[number].role != "tool":
            break
        results.setdefault(messages[number].tool_call_id, number)
    return results


def _without_empty_answers(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Without the assistant's empty turns: answers that were stopped before their first word."""
    kept: list[ChatMessage] = []
    for message in messages:
        if message.role != "assistant" or message.content.strip() or message.tool_calls:
            kept.append(message)
    return tuple(kept) or (ChatMessage(role="user", content=""),)


def _merged(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Neighbouring turns of one role become one, except calls of tools and their results."""
    merged: list[ChatMessage] = []
    for message in messages:
        former = merged[-1] if merged else None
        if former is None or former.role != message.role or not _may_merge(former, message):
            merged.append(message)
            continue
        content = SEPARATOR.join((former.content, message.content))
        merged[-1] = ChatMessage(role=message.role, content=content)
    return tuple(merged)


def _may_merge(former: ChatMessage, message: ChatMessage) -> bool:
    return message.role != "tool" and not former.tool_calls and not message.tool_calls


def _alternating(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Of a merged dialogue: one leading system turn at most, then user and assistant in turn."""
    first = leading_systems(messages)
    turns: list[ChatMessage] = []
    for message in messages[first:]:
        role: Role = message.role
        if role == "system":
            role = "user"
        turns.append(msgspec.structs.replace(message, role=role))
    if not turns or turns[0].role == "assistant":
        turns.insert(0, ChatMessage(role="user", content=""))
    return messages[:first] + _merged(tuple(turns))


def _system_in_first_turn(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Of an alternating dialogue: the first user turn carries the system text."""
    if messages[0].role != "system":
        return messages
    system, user = messages[:2]
    content = user.content
    if system.content and user.content:
        content = system.content + SEPARATOR + user.content
    elif system.content:
        content = system.content
    return (ChatMessage(role="user", content=content), *messages[2:])
