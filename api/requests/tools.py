"""Tools of a request as the wire has them, whichever API's fields they come from.

Each function raises PydanticCustomError for what is invalid; `at` in it says where.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic_core import PydanticCustomError

from api.requests.structured import schema_text
from broker.wire import Job, Tool, ToolCall, ToolChoice

MAX_TOOLS = 256
MAX_TOOLS_BYTES = 1024 * 1024  # of all tools' schemas and descriptions together
MAX_ARGUMENTS = 1024 * 1024  # characters of a call in a message
MAX_ID = 255  # characters
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")  # Anthropic's limit, the wider one


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How a request may use tools."""

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = "auto"
    name: str = ""  # with "required": this one
    parallel: bool = True

    def apply(self, job: Job) -> Job:
        """The job with them."""
        if not self.tools:
            return job
        return msgspec.structs.replace(
            job,
            tools=self.tools,
            tool_choice=self.choice,
            tool_name=self.name,
            parallel_tool_calls=self.parallel,
        )


def tool(
    name: str, description: str | None, parameters: Any, *, strict: bool | None = False
) -> Tool:
    """One function. `parameters`: the JSON schema of its arguments, or None if it takes none."""
    schema = ""
    if parameters:
        schema = schema_text(parameters)
        _check_object(parameters)
    return Tool(
        name=tool_name(name), description=description or "", parameters=schema, strict=bool(strict)
    )


def _check_object(schema: Any) -> None:
    kinds = schema.get("type", "object") if isinstance(schema, dict) else "object"
    if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
        raise PydanticCustomError("parameters", "the arguments' schema must be of type object")


def tool_name(name: str) -> str:
    """The name of a function, if it is one."""
    if _NAME.fullmatch(name) is None:
        raise PydanticCustomError(
            "name", "must have 1 to 128 letters, digits, underscores and hyphens"
        )
    return name


def tool_use(
    tools: Sequence[Tool], choice: ToolChoice = "auto", name: str = "", *, parallel: bool = True
) -> ToolUse:
    """Tools and the choice between them, if they fit together.

    `name`: with the choice "required", the only one that may be called.
    """
    if len(tools) > MAX_TOOLS:
        raise PydanticCustomError("tools", "at most {most} tools", {"most": MAX_TOOLS})
    names = {one.name for one in tools}
    if len(names) < len(tools):
        raise PydanticCustomError("tools", "each tool needs a name of its own")
    size = sum(len(one.parameters) + len(one.description) for one in tools)
    if size > MAX_TOOLS_BYTES:
        raise PydanticCustomError(
            "tools", "all tools together have at most {most} bytes", {"most": MAX_TOOLS_BYTES}
        )
    if name and name not in names:
        raise PydanticCustomError(
            "tool_choice", "there is no tool {name}", {"name": repr(name)[:100]}
        )
    if choice == "required" and not tools:
        raise PydanticCustomError("tool_choice", "only with tools")
    return ToolUse(tuple(tools), choice, name, parallel)


def allowed_use(
    tools: Sequence[Tool], names: Collection[str], choice: ToolChoice, *, parallel: bool
) -> ToolUse:
    """Of the tools, only those of these names."""
    for name in names:
        tool_use(tools, "required", name)
    allowed = [tool for tool in tools if tool.name in names]
    return tool_use(allowed, choice, parallel=parallel)


def tool_call(identifier: str, name: str, arguments: str) -> ToolCall:
    """A call in an assistant's earlier turn."""
    if len(arguments) > MAX_ARGUMENTS:
        raise PydanticCustomError("arguments", "at most {most} characters", {"most": MAX_ARGUMENTS})
    return ToolCall(id=identifier[:MAX_ID], name=tool_name(name), arguments=arguments)
