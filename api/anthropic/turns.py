"""A request's messages and system prompt, read as turns of a dialogue."""

from collections.abc import Callable
from typing import Any

import msgspec
from pydantic_core import PydanticCustomError

from api.http.parsing import MAX_ECHOED
from api.requests import tools
from broker.wire import ChatMessage, ToolCall

Block = dict[str, Any]

MAX_MESSAGES = 10_000
_SEEN = {
    "image": "images are not understood here; only text is",
    "document": "documents are not understood here; send their text",
    "search_result": "search results are not understood here; send their text",
    "container_upload": "files are not understood here; send their text",
}
FAILED = "Error: "  # before the result of a tool that failed


def of_messages(messages: Any) -> Any:
    """The turns of a dialogue. Raises PydanticCustomError."""
    if not isinstance(messages, list):
        return messages
    reader = _Reader()
    for index, message in enumerate(messages):
        reader.read(message, index)
    return reader.turns


def of_system(system: Any) -> Any:
    """The system prompt as one text, whose blocks are lines. Raises PydanticCustomError."""
    if not isinstance(system, list):
        return system
    return "\n".join(_text(block, index) for index, block in enumerate(system))


class _Reader:
    """Reads messages in their order; remembers which function each call named."""

    def __init__(self) -> None:
        self.turns: list[ChatMessage] = []
        self._names: dict[str, str] = {}  # of functions, by call id

    def read(self, message: Any, index: int) -> None:
        role = message.get("role") if isinstance(message, dict) else None
        read = _ROLES.get(role) if isinstance(role, str) else None
        if read is None:
            raise _error("must be user, assistant or system", index, "role")
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise _error("must be a text or a list of blocks", index, "content")
        read(self, content, index)

    def system(self, content: list[Any], index: int) -> None:
        texts = [_text(block, index, "content", at) for at, block in enumerate(content)]
        self.turns.append(ChatMessage(role="system", content="\n".join(texts)))

    def user(self, content: list[Any], index: int) -> None:
        """Results of tools are turns of their own, in their place among the texts."""
        texts: list[str] = []
        before = len(self.turns)
        for at, block in enumerate(content):
            if _kind(block) == "tool_result":
                self._end_user(texts)
                self._result(block, index, at)
            else:
                texts.append(_text(block, index, "content", at))
        if texts or len(self.turns) == before:
            self._end_user(texts or [""])

    def _end_user(self, texts: list[str]) -> None:
        if texts:
            self.turns.append(ChatMessage(role="user", content="\n".join(texts)))
            texts.clear()

    def _result(self, block: Block, index: int, at: int) -> None:
        where = (index, "content", at)
        call_id = _name(block, "tool_use_id", *where)
        content = block.get("content")
        if content is None:
            content = ""
        if isinstance(content, list):
            texts = [_text(each, *where, "content", n) for n, each in enumerate(content)]
            content = "\n".join(texts)
        if not isinstance(content, str):
            raise _error("must be a text or a list of text blocks", *where, "content")
        if block.get("is_error") is True:
            content = FAILED + content
        name = self._names.get(call_id, "")
        self.turns.append(
            ChatMessage(role="tool", content=content, tool_call_id=call_id, name=name)
        )

    def assistant(self, content: list[Any], index: int) -> None:
        texts: list[str] = []
        reasoning: list[str] = []
        calls: list[ToolCall] = []
        for at, block in enumerate(content):
            match _kind(block):
                case "tool_use":
                    calls.append(self._call(block, index, "content", at))
                case "thinking":
                    reasoning.append(str(block.get("thinking", "")))
                case "redacted_thinking":
                    continue  # encrypted by another service
                case _:
                    texts.append(_text(block, index, "content", at))
        self.turns.append(
            ChatMessage(
                role="assistant",
                content="\n".join(texts),
                tool_calls=tuple(calls),
                reasoning="\n".join(reasoning),
            )
        )

    def _call(self, block: Block, *where: str | int) -> ToolCall:
        call_id, name = _name(block, "id", *where), _name(block, "name", *where)
        self._names[call_id] = name
        arguments = msgspec.json.encode(block.get("input") or {}).decode()
        try:
            return tools.tool_call(call_id, name, arguments)
        except PydanticCustomError as error:
            raise _error(error.message(), *where) from error


_ROLES: dict[str, Callable[[_Reader, list[Any], int], None]] = {
    "system": _Reader.system,
    "user": _Reader.user,
    "assistant": _Reader.assistant,
}


def _kind(block: Any) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    return kind if isinstance(kind, str) else ""


def _text(block: Any, *where: str | int) -> str:
    """Raises PydanticCustomError for a block without text."""
    kind = _kind(block)
    if kind != "text":
        shown = f"blocks of type {kind[:MAX_ECHOED]} are not supported here"
        raise _error(_SEEN.get(kind, shown), *where)
    text = block.get("text")
    if not isinstance(text, str):
        raise _error("must be a text", *where, "text")
    return text


def _name(block: Block, field: str, *where: str | int) -> str:
    name = block.get(field)
    if not isinstance(name, str) or not 0 < len(name) <= tools.MAX_ID:
        raise _error(f"must be a text of 1 to {tools.MAX_ID} characters", *where, field)
    return name


def _error(message: str, *location: str | int) -> PydanticCustomError:
    return PydanticCustomError("block", "{message}", {"message": message, "at": location})
