"""The request bodies of /v1/messages and /v1/messages/count_tokens.

Unknown fields are ignored, `cache_control` among them: prompts that begin alike share their cache
by themselves.
"""

from typing import Annotated, Any, Literal

from ninja import Schema
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from api.anthropic import turns
from api.http.parsing import MAX_ECHOED, Body, Integer, ModelName
from api.openai import unsupported
from api.openai.schemas import MAX_STOP_LENGTH, MAX_STOPS
from api.openai.unsupported import Unsupported
from api.requests import structured, tools
from api.requests.build import SAMPLING_DEFAULTS, TOP_P, nucleus
from api.requests.tools import ToolUse
from broker.wire import ChatMessage, Grammar, Sampling, Tool

UNSUPPORTED_FIELDS = {
    "mcp_servers": Unsupported(([],), "let the client call the server's tools"),
    "container": Unsupported(),
    "stop": Unsupported(([], ""), "use stop_sequences"),
    "max_tokens_to_sample": Unsupported(instead="use max_tokens"),
    "prompt": Unsupported(instead="use messages"),
}
# A budget of thinking, in tokens, below which a model is asked for less effort.
_LITTLE, _SOME = 4096, 16384
_TOOL_TYPES = (None, "custom")


class OutputFormat(Body):
    """The schema of the answer."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")

    @field_validator("schema_")
    @classmethod
    def _check(cls, schema: dict[str, Any]) -> dict[str, Any]:
        structured.json_schema(schema)
        return schema


class OutputConfig(Body):
    """What the answer is like."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Thinking(Body):
    """Whether the model reasons. Its budget is a hint: none is enforced."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[Integer, Field(ge=1, le=10_000_000)] | None = None

    @property
    def effort(self) -> str:
        """As nodes read it; empty: the model's default."""
        if self.type == "disabled":
            return "none"
        if self.type == "adaptive" or self.budget_tokens is None:
            return ""
        if self.budget_tokens < _LITTLE:
            return "low"
        return "medium" if self.budget_tokens < _SOME else "high"


class MessageToolChoice(Body):
    """Which of the tools are used."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = False


def _checked_tools(sent: Any) -> Any:
    """Raises PydanticCustomError for a tool that its client does not run."""
    if not isinstance(sent, list):
        return sent
    offered = [_tool(tool, index) for index, tool in enumerate(sent)]
    tools.tool_use(offered)
    return offered


def _tool(tool: Any, index: int) -> Tool:
    if not isinstance(tool, dict) or tool.get("type") not in _TOOL_TYPES:
        kind = tool.get("type") if isinstance(tool, dict) else tool
        message = f"{str(kind)[:MAX_ECHOED]} is not supported here; only tools with an input_schema"
        raise _error(message, index, "type")
    name, description = tool.get("name"), tool.get("description")
    if not isinstance(name, str):
        raise _error("must be a text", index, "name")
    if not isinstance(description, str | None):
        raise _error("must be a text", index, "description")
    try:
        return tools.tool(
            name, description, tool.get("input_schema"), strict=tool.get("strict") is True
        )
    except PydanticCustomError as error:
        raise _error(error.message(), index) from error


def _error(message: str, *location: str | int) -> PydanticCustomError:
    return PydanticCustomError("tool", "{message}", {"message": message, "at": location})


class CountRequest(Body):
    """The body of /v1/messages/count_tokens: what makes the prompt."""

    model: ModelName
    messages: Annotated[
        list[dict[str, Any]],
        Field(min_length=1, max_length=turns.MAX_MESSAGES),
        AfterValidator(turns.of_messages),
    ]
    system: Annotated[str, BeforeValidator(turns.of_system)] | None = None
    tools: Annotated[list[dict[str, Any]], AfterValidator(_checked_tools)] | None = None
    tool_choice: MessageToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(
        default=None, description="the former name of output_config.format"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        unsupported.refuse(body, UNSUPPORTED_FIELDS)
        return body

    @field_validator("tool_choice")
    @classmethod
    def _check_choice(
        cls, choice: MessageToolChoice | None, others: ValidationInfo
    ) -> MessageToolChoice | None:
        if "tools" in others.data:  # else they are wrong themselves
            _tool_use(others.data["tools"], choice)
        return choice

    def dialogue(self) -> list[ChatMessage]:
        """The turns, the system prompt first."""
        dialogue: list[Any] = list(self.messages)
        if self.system:
            dialogue.insert(0, ChatMessage(role="system", content=self.system))
        return dialogue

    @property
    def is_prefilled(self) -> bool:
        """True if the answer goes on where the last turn, the assistant's, stops."""
        last: Any = self.messages[-1]
        return bool(last.role == "assistant" and last.content and not last.tool_calls)

    def tool_use(self) -> ToolUse:
        """How the answer may use the tools."""
        return _tool_use(self.tools, self.tool_choice)

    @property
    def effort(self) -> str:
        """How much a model that reasons does so; empty: its default."""
        if self.thinking is not None and self.thinking.type == "disabled":
            return "none"
        if self.output_config is not None and self.output_config.effort is not None:
            return self.output_config.effort
        return "" if self.thinking is None else self.thinking.effort


def _tool_use(offered: Any, choice: MessageToolChoice | None) -> ToolUse:
    """Raises PydanticCustomError."""
    offered = offered or ()
    if choice is None:
        return tools.tool_use(offered)
    parallel = choice.disable_parallel_tool_use is not True
    match choice.type:
        case "auto" | "none":
            return tools.tool_use(offered, choice.type, parallel=parallel)
        case "any":
            return tools.tool_use(offered, "required", parallel=parallel)
    if not choice.name:
        raise _error("must name a tool", "name")
    return tools.tool_use(offered, "required", choice.name, parallel=parallel)


class MessagesRequest(CountRequest):
    """The body of /v1/messages."""

    max_tokens: Annotated[Integer, Field(ge=1, le=10_000_000)]
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1, description=TOP_P)
    top_k: Annotated[Integer, Field(ge=0, le=1_000_000)] | None = None
    stop_sequences: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]],
            Field(max_length=MAX_STOPS),
        ]
        | None
    ) = None
    stream: bool | None = False

    def sampling(self) -> Sampling:
        """The sampling parameters, as nodes read them."""
        chosen: dict[str, Any] = {}
        for name in ("temperature", "top_p", "top_k"):
            value = getattr(self, name)
            if value is not None:
                chosen[name] = value
        if self.top_p is not None:
            chosen["top_p"] = nucleus(self.top_p)
        return Sampling(
            **chosen,
            defaulted=tuple(name for name in SAMPLING_DEFAULTS if name not in chosen),
            max_tokens=self.max_tokens,
            stop=tuple(self.stop_sequences or ()),
            include_stop=bool(self.stop_sequences),  # see stops.py
            grammar=self._grammar(),
        )

    def _grammar(self) -> Grammar | None:
        wanted = None if self.output_config is None else self.output_config.format
        wanted = wanted or self.output_format
        return None if wanted is None else structured.json_schema(wanted.schema_)


class TokenCount(Schema):
    """How many tokens a request's prompt has."""

    input_tokens: int
