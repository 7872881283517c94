"""Tools in a request to another server, and its calls as text, as Hermes writes them.

A node sends text, and its Start says how calls are marked in it (`TOOL_FORMAT`), whichever way the
server behind it tells of them.
"""

import json
from typing import Any

import msgspec

from broker.wire import ChatMessage, Job, Tool
from worker.engines.base import InvalidRequest

TOOL_FORMAT = "hermes"
BEGIN = "<tool_call>"
_END = "</tool_call>"


class FunctionDelta(msgspec.Struct):
    """A part of a call."""

    name: str | None = None
    arguments: str | None = None


class CallDelta(msgspec.Struct):
    """The same, with the call that it belongs to."""

    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class CallText:
    """Writes one answer's calls as text, while they come."""

    def __init__(self) -> None:
        self._index: int | None = None  # of the present call
        self._id: str | None = None
        self._open = False
        self._has_arguments = False

    def push(self, deltas: list[CallDelta]) -> str:
        """The text of what is new."""
        return "".join(map(self._one, deltas))

    def close(self) -> str:
        """The end of the present call, if there is one."""
        if not self._open:
            return ""
        self._open = False
        arguments = "" if self._has_arguments else "{}"
        return f"{arguments}}}\n{_END}"

    def _one(self, delta: CallDelta) -> str:
        function = delta.function or FunctionDelta()
        text = ""
        if function.name and self._is_another(delta):
            text = self.close()
            text += f'{BEGIN}\n{{"name": {json.dumps(function.name)}, "arguments": '
            self._index, self._id, self._open = delta.index, delta.id, True
            self._has_arguments = False
        if function.arguments and self._open:
            self._has_arguments = True
            text += function.arguments
        return text

    def _is_another(self, delta: CallDelta) -> bool:
        """Some servers repeat the name with each part; some give all calls one index."""
        if not self._open or delta.index != self._index:
            return True
        return delta.id is not None and delta.id != self._id


def fields(job: Job) -> dict[str, Any]:
    """What a body says of tools. Raises InvalidRequest."""
    if not job.tools:
        return {}
    choice: Any = job.tool_choice
    if job.tool_name:
        choice = {"type": "function", "function": {"name": job.tool_name}}
    found: dict[str, Any] = {"tools": [_tool(tool) for tool in job.tools], "tool_choice": choice}
    if not job.parallel_tool_calls:
        found["parallel_tool_calls"] = False
    return found


def turn(message: ChatMessage) -> dict[str, Any]:
    """A turn as bodies have it."""
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        found["content"] = message.content or None
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        found["tool_call_id"] = message.tool_call_id
    return found


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    try:
        schema = msgspec.json.decode(tool.parameters) if tool.parameters else None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"tools: the schema of {tool.name} is not valid JSON") from error
    function["parameters"] = schema or {"type": "object", "properties": {}}
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}
