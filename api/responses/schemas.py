"""The request bodies of /v1/responses.

Unknown fields are ignored, because OpenAI's clients keep sending new ones; those that would change
the answer elsewhere are refused by name.
"""

from typing import Annotated, Any, Literal, Self

from ninja import Schema
from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from api.errors import UNSUPPORTED
from api.http.parsing import Body, Integer, ModelName, StorableText
from api.openai import unsupported
from api.openai.unsupported import Unsupported
from api.requests import structured
from api.requests.build import SAMPLING_DEFAULTS, TOP_P, nucleus
from api.requests.tools import ToolUse
from api.responses import functions, items
from broker.wire import Grammar, JobClass, Sampling

MAX_PAIRS = 16
MAX_TOKENS = 10_000_000
MAX_PAGE = 100
MAX_TOP_LOGPROBS = 20
_FOR_INPUT = "use input"
_FOR_LENGTH = "use max_output_tokens"
_FOR_FORMAT = "use text.format"
_FOR_EFFORT = "use reasoning.effort"

UNSUPPORTED_FIELDS = {
    "messages": Unsupported(instead=_FOR_INPUT),
    "max_tokens": Unsupported(instead=_FOR_LENGTH),
    "max_completion_tokens": Unsupported(instead=_FOR_LENGTH),
    "response_format": Unsupported(instead=_FOR_FORMAT),
    "reasoning_effort": Unsupported(instead=_FOR_EFFORT),
    "n": Unsupported((1,), "send a request for each answer"),
    "conversation": Unsupported(instead="use previous_response_id"),
    "prompt": Unsupported(instead="put the prompt's text into instructions"),
    "context_management": Unsupported(([],), "use truncation"),
    "moderation": Unsupported(),
}
# What `include` may name and has an effect here.
_LOGPROBS = "message.output_text.logprobs"

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Pairs = Annotated[
    dict[
        Annotated[StorableText, Field(max_length=64)],
        Annotated[StorableText, Field(max_length=512)],
    ],
    Field(max_length=MAX_PAIRS),
]
ResponseTokens = Annotated[Integer, Field(ge=1, le=MAX_TOKENS)]


class Reasoning(Body):
    """How a model that reasons does so."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None  # its former name


class TextFormat(Body):
    """What the text of the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(default=None, max_length=64)
    description: str | None = Field(default=None, max_length=10_000)
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema", validate_default=True)
    strict: bool | None = None

    @field_validator("json_schema")
    @classmethod
    def _only_with_its_type(cls, schema: Any, others: ValidationInfo) -> Any:
        if schema is None and others.data.get("type") == "json_schema":
            raise PydanticCustomError("schema", "must be a JSON schema")
        if schema is not None:
            structured.json_schema(schema)
        return schema

    def grammar(self) -> Grammar | None:
        """As nodes read it; None: any text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return structured.json_object()
        return structured.json_schema(self.json_schema)


class TextOptions(Body):
    """Options of the text."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponseRequest(Body):
    """The body of POST /v1/responses."""

    model: ModelName
    input: Annotated[
        str | Annotated[list[dict[str, Any]], Field(max_length=items.MAX_ITEMS)],
        AfterValidator(items.checked),
    ]
    instructions: StorableText | None = None
    previous_response_id: str | None = Field(default=None, max_length=100)
    stream: bool | None = False
    background: bool | None = False
    store: bool | None = True
    tools: Annotated[list[dict[str, Any]] | None, AfterValidator(functions.checked)] = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: ResponseTokens | None = None
    max_tool_calls: Integer | None = Field(default=None, ge=1, description="only echoed")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1, description=TOP_P)
    seed: Integer | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Pairs | None = None
    include: list[str] | None = Field(default=None, max_length=100)
    top_logprobs: Integer | None = Field(
        default=None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="how many of the likeliest tokens in each one's place; tells logprobs, too",
    )
    service_tier: Literal["auto", "default", "flex", "priority", "scale", "fast"] | None = None
    user: StorableText | None = Field(default=None, max_length=1000)
    prompt_cache_key: StorableText | None = Field(default=None, max_length=1000)
    safety_identifier: StorableText | None = Field(default=None, max_length=1000)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        unsupported.refuse(body, UNSUPPORTED_FIELDS)
        return body

    @field_validator("tool_choice")
    @classmethod
    def _check_choice(cls, choice: Any, others: ValidationInfo) -> Any:
        if "tools" in others.data:  # else they are wrong themselves
            functions.use_of(others.data["tools"] or (), choice)
        return choice

    @field_validator("store")
    @classmethod
    def _background_is_stored(cls, store: bool | None, others: ValidationInfo) -> bool | None:
        if store is False and others.data.get("background"):
            raise PydanticCustomError("store", "a background response is stored; leave this out")
        return store

    @model_validator(mode="after")
    def _logprobs_are_not_kept(self) -> Self:
        if self.background and self.logprobs is not None:
            message = "logprobs are not kept, so not in the background; leave out {name}"
            name = "top_logprobs" if self.top_logprobs else "include"
            raise PydanticCustomError(UNSUPPORTED, message, {"name": name, "at": (name,)})
        return self

    @property
    def logprobs(self) -> int | None:
        """How many of the likeliest tokens to tell beside each; None: no logprobs at all."""
        if self.top_logprobs or (self.include and _LOGPROBS in self.include):
            return self.top_logprobs or 0
        return None

    @property
    def is_stored(self) -> bool:
        """True if the response can be read again."""
        return self.store is not False

    @property
    def job_class(self) -> JobClass:
        """`flex` can wait; see api/openai/schemas.py."""
        return "batch" if self.service_tier == "flex" else "interactive"

    @property
    def summarised(self) -> bool:
        """True if reasoning is told as a summary."""
        reasoning = self.reasoning
        return bool(reasoning and (reasoning.summary or reasoning.generate_summary))

    def tool_use(self) -> ToolUse:
        """How the answer may use the functions."""
        parallel = self.parallel_tool_calls is not False
        return functions.use_of(self.tools or (), self.tool_choice, parallel=parallel)

    def sampling(self) -> Sampling:
        """The sampling parameters, as nodes read them."""
        chosen: dict[str, float] = {}
        if self.temperature is not None:
            chosen["temperature"] = self.temperature
        if self.top_p is not None:
            chosen["top_p"] = nucleus(self.top_p)
        return Sampling(
            **chosen,  # type: ignore[arg-type]
            defaulted=tuple(name for name in SAMPLING_DEFAULTS if name not in chosen),
            seed=self.seed,
            reproducible=self.seed is not None,
            max_tokens=self.max_output_tokens,
            logprobs=self.logprobs,
            grammar=self.text.format.grammar() if self.text and self.text.format else None,
        )

    def parameters(self) -> dict[str, Any]:
        """What a response repeats of its request."""
        reasoning, text = self.reasoning, self.text
        return {
            "model": self.model,
            "instructions": self.instructions,
            "previous_response_id": self.previous_response_id,
            "background": bool(self.background),
            "store": self.is_stored,
            "tools": self.tools or [],
            "tool_choice": self.tool_choice or "auto",
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "text": {
                "format": _format_of(text),
                "verbosity": (text and text.verbosity) or "medium",
            },
            "reasoning": {
                "effort": reasoning.effort if reasoning else None,
                "summary": (reasoning.summary or reasoning.generate_summary) if reasoning else None,
            },
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_logprobs": self.top_logprobs or 0,
            "truncation": self.truncation or "disabled",
            "metadata": self.metadata or {},
            "service_tier": "flex" if self.job_class == "batch" else "default",
            "user": self.user,
            "prompt_cache_key": self.prompt_cache_key,
            "safety_identifier": self.safety_identifier,
        }


def _format_of(text: TextOptions | None) -> dict[str, Any]:
    if text is None or text.format is None or text.format.type == "text":
        return {"type": "text"}
    if text.format.type == "json_object":
        return {"type": "json_object"}
    return {
        "type": "json_schema",
        "name": text.format.name or "answer",
        "description": text.format.description,
        "schema": text.format.json_schema,
        "strict": text.format.strict is True,
    }


class ResponseQuery(Schema):
    """How a stored response is read. `starting_after`: the last event that the client has."""

    stream: bool = False
    starting_after: int | None = Field(default=None, ge=0, le=2**53)


class ItemsQuery(Schema):
    """Which of the input items are read. `after`: the last id of the former page."""

    limit: int = Field(default=20, ge=1, le=MAX_PAGE)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = Field(default=None, max_length=200)


class InputItems(Schema):
    """A page of a response's input items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(Schema):
    """How many tokens an input has."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class DeletedResponse(Schema):
    """What is left of a response."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]
