"""The fields of tools in chat completions, the older `functions` among them."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from api.http.parsing import MAX_ECHOED, Body
from api.requests.tools import ToolUse, allowed_use, tool, tool_call, tool_use
from broker.wire import Tool, ToolCall, ToolChoice

T = TypeVar("T")

_CHOICES: dict[str, ToolChoice] = {
    "none": "none",
    "auto": "auto",
    "required": "required",
    "any": "required",  # Mistral's word
}


class FunctionDefinition(Body):
    """A function that the model may call; `parameters`: the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def to_wire(self) -> Tool:
        """Raises PydanticCustomError."""
        return tool(self.name, self.description, self.parameters, strict=self.strict)


class ToolDefinition(Body):
    """A tool: a function."""

    type: Literal["function"] = "function"
    function: FunctionDefinition


class FunctionName(Body):
    """Names a function."""

    name: str


class ToolToCall(Body):
    """`{"type": "function", "function": {"name": ...}}`."""

    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(Body):
    """Some of the tools, and whether one must be called."""

    mode: Literal["auto", "required"]
    tools: list[ToolToCall]


class AllowedChoice(Body):
    """`{"type": "allowed_tools", ...}`: the model is told of these alone."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _named(choice: Any) -> Any:
    """`{"type": "function", "name": ...}`, as in /v1/responses, is understood, too."""
    if isinstance(choice, dict) and "function" not in choice and "name" in choice:
        return {"type": choice.get("type", "function"), "function": {"name": choice["name"]}}
    return choice


class CalledFunction(Body):
    """A function and its arguments, as a model wrote them."""

    name: str
    arguments: str = "{}"


class MessageToolCall(Body):
    """A call in an assistant's turn."""

    id: str = Field(max_length=255)
    type: Literal["function"] = "function"
    function: CalledFunction

    def to_wire(self) -> ToolCall:
        """Raises PydanticCustomError."""
        return tool_call(self.id, self.function.name, self.function.arguments)


def legacy_call(function: CalledFunction) -> ToolCall:
    """An assistant's `function_call`, which has no id: its result is found by the name."""
    return tool_call(f"call_{function.name}", function.name, function.arguments)


class ToolFields(Body):
    """The part of a request that says which tools there are, and which must be called."""

    tools: list[ToolDefinition] | None = None
    tool_choice: Annotated[str | ToolToCall | AllowedChoice | None, BeforeValidator(_named)] = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionDefinition] | None = None
    function_call: str | FunctionName | None = None
    _use: ToolUse = PrivateAttr(default_factory=ToolUse)  # no default: it is copied deeply

    @property
    def tool_use(self) -> ToolUse:
        """The tools as nodes have them."""
        return self._use

    @property
    def wants_functions(self) -> bool:
        """Whether calls are to be shown in the older way."""
        return bool(self.functions)

    @model_validator(mode="after")
    def _find_tools(self) -> Self:
        if self.model_fields_set.isdisjoint(_TOOL_FIELDS):
            return self
        if self.functions and self.tools:
            raise PydanticCustomError("tools", "not with tools", {"at": ("functions",)})
        if self.functions:
            self._use = self._functions_use(self.functions)
        else:
            self._use = self._tools_use(self.tools or [])
        return self

    def _tools_use(self, definitions: list[ToolDefinition]) -> ToolUse:
        tools = []
        for index, definition in enumerate(definitions):
            tools.append(_at(("tools", index, "function"), definition.function.to_wire))
        chosen = self.tool_choice
        parallel = self.parallel_tool_calls is not False
        if isinstance(chosen, AllowedChoice):
            names = [allowed.function.name for allowed in chosen.allowed_tools.tools]
            mode = chosen.allowed_tools.mode
            return _at(("tool_choice",), lambda: allowed_use(tools, names, mode, parallel=parallel))
        choice, name = _chosen(chosen if not isinstance(chosen, ToolToCall) else chosen.function)
        if choice is None:
            raise _unknown_choice("tool_choice", chosen)
        _at(("tools",), lambda: tool_use(tools))
        return _at(("tool_choice",), lambda: tool_use(tools, choice, name, parallel=parallel))

    def _functions_use(self, functions: list[FunctionDefinition]) -> ToolUse:
        tools = []
        for index, function in enumerate(functions):
            tools.append(_at(("functions", index), function.to_wire))
        choice, name = _chosen(self.function_call)
        if choice is None:
            raise _unknown_choice("function_call", self.function_call)
        _at(("functions",), lambda: tool_use(tools))
        return _at(("function_call",), lambda: tool_use(tools, choice, name, parallel=False))


_TOOL_FIELDS = frozenset(ToolFields.model_fields)


def _chosen(chosen: str | FunctionName | None) -> tuple[ToolChoice | None, str]:
    """The wire's choice, and which tool must be called; None for an unknown one."""
    if chosen is None:
        return "auto", ""
    if isinstance(chosen, FunctionName):
        return "required", chosen.name
    return _CHOICES.get(chosen), ""


def _unknown_choice(field: str, chosen: Any) -> PydanticCustomError:
    context = {"chosen": repr(chosen)[:MAX_ECHOED], "at": (field,)}
    message = "{chosen} is not known; use none, auto, required, or an object that names a function"
    return PydanticCustomError("tool_choice", message, context)


def _at(location: tuple[str | int, ...], make: Callable[[], T]) -> T:
    """What `make` returns; its error says where."""
    try:
        return make()
    except PydanticCustomError as error:
        context = {**(error.context or {}), "at": location}
        raise PydanticCustomError("tools", error.message_template, context) from error  # type: ignore[arg-type]
