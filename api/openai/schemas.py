"""The request bodies of /v1/.

Unknown fields are ignored, because OpenAI's clients keep sending new ones; fields that are known to
change the answer elsewhere are refused (unsupported.py).
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from api.errors import UNSUPPORTED
from api.http.parsing import MAX_ECHOED, Body, Integer, ModelName
from api.openai import unsupported
from api.openai.ending_fields import EndingFields
from api.openai.structured_fields import StructuredFields
from api.openai.template_fields import TemplateFields
from api.openai.tool_fields import CalledFunction, MessageToolCall, ToolFields, legacy_call
from api.requests.build import SAMPLING_DEFAULTS, TOP_P, nucleus
from broker.wire import MAX_BIASES, ChatMessage, JobClass, Role, Sampling, ToolCall

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
MAX_STOPS = 16
MAX_STOP_LENGTH = 500
MAX_CHOICES = 128
MAX_BIAS = 100
MAX_ID_DIGITS = 9
MAX_CALLS = 256  # in one turn
# The parts of a message that have text, and the field it is in.
TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}


def _flatten(content: Any) -> Any:
    """A message's content as one text: the texts of its parts, one a line."""
    if not isinstance(content, list):
        return content
    return "\n".join(_text_of(part, index) for index, part in enumerate(content))


def _text_of(part: Any, index: int) -> str:
    """Raises PydanticCustomError for a part without text."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise PydanticCustomError(
            "part", "part {index} has no type; only text is understood", {"index": index}
        )
    if kind not in TEXT_PARTS:
        context = {"index": index, "kind": kind[:MAX_ECHOED]}
        raise PydanticCustomError(
            "part", "part {index} is of type {kind}; only text is understood", context
        )
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        context = {"index": index, "name": TEXT_PARTS[kind]}
        raise PydanticCustomError("part", "part {index} has no text in {name}", context)
    return text


def _as_stops(stop: Any) -> Any:
    """Stop strings as a list, without empty ones, which many clients send for none."""
    if isinstance(stop, str):
        stop = [stop]
    if not isinstance(stop, list):
        return stop
    return [string for string in stop if string != ""]


def _only_prompt(prompt: Any) -> Any:
    """A prompt as one text. Raises PydanticCustomError for several prompts and for token ids."""
    if not isinstance(prompt, list):
        return prompt
    if prompt and isinstance(prompt[0], int | list):
        raise PydanticCustomError("prompt", "token ids are not supported here; send the text")
    if len(prompt) != 1:
        raise PydanticCustomError(
            "prompt", "several prompts are not supported here; send a request for each"
        )
    return prompt[0]


def _check_role(role: Any) -> Any:
    if not isinstance(role, str) or role not in ROLES:
        raise PydanticCustomError("role", "must be one of {roles}", {"roles": ", ".join(ROLES)})
    return role


def _check_messages(messages: Any) -> Any:
    """Raises PydanticCustomError for a turn with unsupported fields, or without content.

    An assistant's content may be null. One call for all turns: a validator for each turn took ten
    times as long.
    """
    if not isinstance(messages, list):
        return messages
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        unsupported.refuse(message, unsupported.MESSAGE, index)
        if message.get("content") is None and message.get("role") != "assistant":
            raise PydanticCustomError(
                "content", "must be a text or a list of text parts", {"at": (index, "content")}
            )
    return messages


def _by_token(biases: Any) -> Any:
    """Biases by token id; in JSON, the ids are strings."""
    if not isinstance(biases, dict):
        return biases
    if len(biases) > MAX_BIASES:
        raise PydanticCustomError(
            "biases", "at most {most} tokens can be biased", {"most": MAX_BIASES}
        )
    by_token: dict[int, float] = {}
    for token, bias in biases.items():
        if not _is_token_id(token):
            raise PydanticCustomError(
                "token", "{token} is not a token id", {"token": repr(token)[:50]}
            )
        if not _is_bias(bias):
            raise PydanticCustomError("bias", "{token}: must be from -100 to 100", {"token": token})
        by_token[int(token)] = float(bias)
    return by_token


def _is_token_id(text: Any) -> bool:
    if not isinstance(text, str) or len(text) > MAX_ID_DIGITS:
        return False
    return text.isascii() and text.isdecimal()


def _is_bias(bias: Any) -> bool:
    if isinstance(bias, bool) or not isinstance(bias, int | float):
        return False
    return -MAX_BIAS <= bias <= MAX_BIAS


def _off_is_zero(top_k: int) -> int:
    """-1 turns `top_k` off for vLLM's clients, 0 for transformers' and here."""
    return max(0, top_k)


Text = Annotated[str, BeforeValidator(_flatten)]
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_as_stops),
]
Biases = Annotated[dict[int, float], BeforeValidator(_by_token)]
Tier = Literal["auto", "default", "flex", "priority", "scale", "fast"]  # OpenAI's
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Tokens = Annotated[Integer, Field(ge=1, le=10_000_000)]
Choices = Annotated[Integer, Field(ge=1, le=MAX_CHOICES)]
TopK = Annotated[Integer, Field(ge=-1, le=1_000_000), AfterValidator(_off_is_zero)]


# Fields of the same name in Sampling. Those that are null keep its defaults, which take no bytes.
_SETTINGS = (*SAMPLING_DEFAULTS, "logit_bias", "seed")


class RequestMessage(Body):
    """One turn of the dialogue."""

    role: Annotated[str, BeforeValidator(_check_role)]
    content: Text | None = None  # null only for an assistant, see _check_messages
    name: str | None = Field(default=None, max_length=255)
    tool_calls: list[MessageToolCall] | None = Field(default=None, max_length=MAX_CALLS)
    tool_call_id: str | None = Field(default=None, max_length=255)
    function_call: CalledFunction | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    prefix: bool | None = False  # the answer goes on from here; also called partial
    partial: bool | None = False

    def to_wire(self) -> ChatMessage:
        """The turn as nodes read it."""
        role, content = ROLES[self.role], self.content or ""
        if role == "assistant":
            reasoning = self.reasoning_content or self.reasoning or ""
            calls = self._calls()
            return ChatMessage(role=role, content=content, tool_calls=calls, reasoning=reasoning)
        if role == "tool":
            answered = self.tool_call_id or f"call_{self.name}"[:255]
            return ChatMessage(
                role=role, content=content, name=self.name or "", tool_call_id=answered
            )
        return ChatMessage(role=role, content=content)

    def _calls(self) -> tuple[ToolCall, ...]:
        if self.function_call is not None:
            return (legacy_call(self.function_call),)
        return tuple(call.to_wire() for call in self.tool_calls or ())


Messages = Annotated[
    list[RequestMessage],
    Field(min_length=1, max_length=10_000),
    BeforeValidator(_check_messages),
]


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = Field(
        default=False, description="with include_usage: the usage so far in each chunk"
    )


class Generation(StructuredFields, EndingFields):
    """The fields of both endpoints."""

    model: ModelName
    max_tokens: Tokens | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1, description=TOP_P)
    top_k: TopK | None = None
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: Biases | None = Field(
        default=None, description="-100 to 100 by token id, up to 1024 of them"
    )
    seed: Integer | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: Stops | None = None
    n: Choices | None = None
    best_of: Choices | None = Field(default=None, description="1, or the same as n")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=1000)
    service_tier: Tier | None = Field(
        default=None, description="flex: comes after all other jobs; the rest: default"
    )

    @field_validator("best_of")
    @classmethod
    def _same_as_n(cls, best_of: int | None, others: ValidationInfo) -> int | None:
        if best_of not in {None, 1, others.data.get("n")}:
            raise PydanticCustomError(UNSUPPORTED, "not supported here; use n")
        return best_of

    @property
    def wants_usage(self) -> bool:
        """True if a streamed answer must end with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_continuous_usage(self) -> bool:
        """True if each chunk of a streamed answer tells the usage so far."""
        options = self.stream_options
        return bool(options and options.include_usage and options.continuous_usage_stats)

    @property
    def token_limit(self) -> int | None:
        """The most tokens of the answer; None: up to the model's context."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many of the likeliest tokens to return for each token; None: no logprobs at all."""
        return None

    @property
    def job_class(self) -> JobClass:
        """`flex` can wait. No other tier is faster than the default: nobody pays here."""
        return "batch" if self.service_tier == "flex" else "interactive"

    @property
    def tier(self) -> str | None:
        """`service_tier` of the response: the one that served it, if the request named one."""
        if self.service_tier is None:
            return None
        return "flex" if self.job_class == "batch" else "default"

    def sampling(self) -> Sampling:
        """The sampling parameters, as nodes read them."""
        settings: dict[str, Any] = {}
        for name in _SETTINGS:
            value = getattr(self, name)
            if value is not None:
                settings[name] = value
        if self.top_p is not None:
            settings["top_p"] = nucleus(self.top_p)
        return Sampling(
            **settings,
            defaulted=tuple(name for name in SAMPLING_DEFAULTS if name not in settings),
            reproducible=self.seed is not None,
            max_tokens=self.token_limit,
            stop=tuple(self.stop or ()),
            logprobs=self.alternatives,
            grammar=self.grammar,
            **self.ending(),
        )


class ChatCompletion(Generation, ToolFields, TemplateFields):
    """The body of /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Tokens | None = None
    reasoning_effort: Effort | None = Field(
        default=None, description="for models that reason; none: no reasoning"
    )
    logprobs: bool | None = None
    top_logprobs: Integer | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        unsupported.refuse(body, unsupported.CHAT)
        return body

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, top_logprobs: int | None, others: ValidationInfo) -> int | None:
        if top_logprobs and not others.data.get("logprobs"):
            raise PydanticCustomError("logprobs", "only with logprobs: true")
        return top_logprobs

    @model_validator(mode="after")
    def _continues_an_assistant(self) -> "ChatCompletion":
        *others, last = self.messages
        for index, message in enumerate(others):
            if message.prefix or message.partial:
                context: dict[str, Any] = {"at": ("messages", index, "prefix")}
                raise PydanticCustomError("prefix", "only in the last message", context)
        if self.prefills and (last.role != "assistant" or last.tool_calls):
            at: dict[str, Any] = {"at": ("messages",)}
            raise PydanticCustomError(
                "prefix", "the last one must be an assistant's text to be continued", at
            )
        return self

    @property
    def prefills(self) -> bool:
        """Whether the last turn is the beginning of the answer."""
        last = self.messages[-1]
        return bool(self.continue_final_message or last.prefix or last.partial)

    @property
    def alternatives(self) -> int | None:
        """See Generation."""
        if not self.logprobs:
            return None
        return self.top_logprobs or 0

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens` is the newer name of `max_tokens`."""
        return self.max_completion_tokens or self.max_tokens
