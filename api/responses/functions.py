"""The functions that a response may call, and which of them it has to: OpenAI's fields for them."""

from collections.abc import Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from api.http.parsing import MAX_ECHOED
from api.requests import tools
from api.requests.tools import ToolUse
from broker.wire import Tool

Function = dict[str, Any]


def checked(sent: Any) -> Any:
    """The functions in OpenAI's shape. Raises PydanticCustomError for any other tool."""
    if not isinstance(sent, list):
        return sent
    functions = [_function(tool, index) for index, tool in enumerate(sent)]
    tools.tool_use([_to_wire(function) for function in functions])
    return functions


def use_of(functions: Sequence[Function], choice: Any, *, parallel: bool = True) -> ToolUse:
    """How a job may use the functions. `choice`: the field `tool_choice`.

    Raises PydanticCustomError.
    """
    offered = [_to_wire(function) for function in functions]
    match choice:
        case None | "auto":
            return tools.tool_use(offered, parallel=parallel)
        case "none" | "required":
            return tools.tool_use(offered, choice, parallel=parallel)
        case (
            {"type": "function", "name": str(name)}
            | {"type": "function", "function": {"name": str(name)}}  # as in chat completions
        ):
            return tools.tool_use(offered, "required", name, parallel=parallel)
        case {"type": "function"}:
            raise _error("name: must be a text")
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": list(allowed)}:
            names = [_allowed(tool) for tool in allowed]
            return tools.allowed_use(offered, names, mode, parallel=parallel)
        case {"type": str(kind)}:
            raise _error(f"type {kind[:MAX_ECHOED]} is not supported here; only functions are")
    raise _error("must be none, auto, required, or an object that names a function")


def _allowed(tool: Any) -> str:
    match tool:
        case {"type": "function", "name": str(name)}:
            return name
    raise _error("allowed_tools may name functions alone")


def _to_wire(function: Function) -> Tool:
    return tools.tool(
        function["name"],
        function["description"],
        function["parameters"],
        strict=function["strict"],
    )


def _function(tool: Any, index: int) -> Function:
    match tool:
        case {"type": "function", "name": str(name)}:
            function = {
                "type": "function",
                "name": name,
                "description": tool.get("description"),
                "parameters": tool.get("parameters"),
                "strict": tool.get("strict") is True,
            }
        case {"type": "function"}:
            raise _error("must be a text", index, "name")
        case {"type": str(kind)}:
            message = f"{kind[:MAX_ECHOED]} is not supported here; only functions are"
            raise _error(message, index, "type")
        case _:
            raise _error("must be an object with a type", index)
    if not isinstance(function["description"], str | None):
        raise _error("must be a text", index, "description")
    try:
        _to_wire(function)
    except PydanticCustomError as error:
        raise _error(error.message(), index) from error
    return function


def _error(message: str, *location: str | int) -> PydanticCustomError:
    return PydanticCustomError("tool", "{message}", {"message": message, "at": location})
