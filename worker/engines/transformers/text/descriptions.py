"""Tools, calls and results as plain turns, for templates that leave them out. Pure."""

import json
from collections.abc import Callable
from typing import Protocol

import msgspec

from broker.wire import ChatMessage, Tool, ToolCall
from worker.engines.transformers.text.tool_schemas import Parameter, parameters
from worker.engines.transformers.text.tool_turns import Messages, parsed, tool_objects

ToolCalls = tuple[ToolCall, ...]

_CAN_CALL = "You can call these functions:"
_HERMES = """\
To call one, write its name and its arguments as JSON between these marks, for each call:
<tool_call>
{"name": "NAME", "arguments": {...}}
</tool_call>"""
_DEEPSEEK_V3 = """\
To call some of them, write exactly:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME
```json
{...}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"""
_DEEPSEEK_V31 = """\
To call some of them, write exactly:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"""
_TOOL_CODE = """\
At each turn, if you decide to call some of the functions below, write the calls in Python, in a \
block that begins with ```tool_code and ends with ```. You can only use these functions, with \
literal arguments by name. Their results come back in a block ```tool_output: use them to call \
more functions, or to answer the user."""
_HERMES_RESULT = "<tool_response>\n%s\n</tool_response>"
_PYTHON_RESULT = "```tool_output\n%s\n```"
_PYTHON_TYPES = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
    "null": "None",
}


class Style(Protocol):
    """How a model is told of tools, and sees its own calls."""

    def describe(self, tools: tuple[Tool, ...]) -> str:
        """What the model has to know of them."""

    def plain(self, messages: Messages) -> Messages:
        """The dialogue without calls and results of its own kind."""


class JSONStyle:
    """Keeps the Style protocol: schemas between marks, calls in JSON."""

    def __init__(self, how: str) -> None:
        self._how = how

    def describe(self, tools: tuple[Tool, ...]) -> str:
        """See Style."""
        lines = [json.dumps(tool, ensure_ascii=False) for tool in tool_objects(tools, str)]
        return "\n".join([_CAN_CALL, "<tools>", *lines, "</tools>", "", self._how])

    def plain(self, messages: Messages) -> Messages:
        """See Style."""
        return tuple(_plain(message, _hermes_calls, _HERMES_RESULT) for message in messages)


class PythonStyle:
    """Keeps the Style protocol: functions and calls in Python."""

    def describe(self, tools: tuple[Tool, ...]) -> str:
        """See Style."""
        return "\n\n".join([_TOOL_CODE, *map(_function, tools)])

    def plain(self, messages: Messages) -> Messages:
        """See Style."""
        return tuple(_plain(message, _python_calls, _PYTHON_RESULT) for message in messages)


STYLES: dict[str, Style] = {
    "hermes": JSONStyle(_HERMES),
    "deepseek-v3": JSONStyle(_DEEPSEEK_V3),
    "deepseek-v3.1": JSONStyle(_DEEPSEEK_V31),
    "tool-code": PythonStyle(),
}


def with_system(messages: Messages, text: str) -> Messages:
    """The dialogue with a text behind its system turn, or as one."""
    first = messages[0] if messages else None
    if first is not None and first.role == "system":
        content = f"{first.content}\n\n{text}"
        return (msgspec.structs.replace(first, content=content), *messages[1:])
    return (ChatMessage(role="system", content=text), *messages)


def _plain(message: ChatMessage, calls: Callable[[ToolCalls], str], result: str) -> ChatMessage:
    if message.role == "tool":
        return ChatMessage(role="user", content=result % message.content)
    texts = [message.content] if message.content else []
    if message.tool_calls:
        texts.append(calls(message.tool_calls))
    return ChatMessage(role=message.role, content="\n".join(texts))


def _hermes_calls(calls: ToolCalls) -> str:
    lines: list[str] = []
    for call in calls:
        body = {"name": call.name, "arguments": parsed(call.arguments or "{}")}
        lines.append(f"<tool_call>\n{json.dumps(body, ensure_ascii=False)}\n</tool_call>")
    return "\n".join(lines)


def _python_calls(calls: ToolCalls) -> str:
    return "\n".join(["```tool_code", *map(_python_call, calls), "```"])


def _python_call(call: ToolCall) -> str:
    arguments = parsed(call.arguments or "{}")
    if not isinstance(arguments, dict):
        return f"{call.name}()"
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def _function(tool: Tool) -> str:
    """The head of a function with what is known of it."""
    found = parameters(tool)
    lines = [tool.description] if tool.description else []
    if found is None:
        lines.append(f"Arguments by this JSON schema: {tool.parameters}")
    for parameter in found or []:
        lines.append(f"{parameter.name}: {_explained(parameter)}")
    head = ", ".join(map(_declared, found)) if found is not None else "**arguments"
    body = "\n    ".join(['"""', *lines, '"""'])
    return f"def {tool.name}({head}):\n    {body}"


def _declared(parameter: Parameter) -> str:
    kind = parameter.schema.get("type")
    declared = parameter.name
    if isinstance(kind, str) and kind in _PYTHON_TYPES:
        declared += f": {_PYTHON_TYPES[kind]}"
    return declared if parameter.required else f"{declared} = None"


def _explained(parameter: Parameter) -> str:
    """All that the schema says but the type."""
    described = parameter.schema.get("description", "")
    others = {
        key: value
        for key, value in parameter.schema.items()
        if key not in ("type", "title", "description", "$defs", "definitions")
    }
    texts = [str(described)] if described else []
    if others:
        texts.append(json.dumps(others, ensure_ascii=False))
    return " ".join(texts)
