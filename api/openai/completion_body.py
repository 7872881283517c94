"""The body of /v1/completions."""

from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from api.errors import UNSUPPORTED
from api.http.parsing import Integer
from api.openai import unsupported
from api.openai.schemas import Choices, Generation, Tokens
from api.requests.build import Prompt

MAX_PROMPTS = 1024
MAX_ID = 2**32 - 1


def _as_prompts(prompt: Any) -> Any:
    """One prompt or several, as a list of texts and tuples of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise PydanticCustomError("prompt", "must be a text, token ids, or a list of either")
    if isinstance(prompt[0], int):
        return [_as_ids(prompt)]
    if len(prompt) > MAX_PROMPTS:
        raise PydanticCustomError("prompt", "at most {most} prompts", {"most": MAX_PROMPTS})
    return [each if isinstance(each, str) else _as_ids(each) for each in prompt]


def _as_ids(ids: Any) -> tuple[int, ...]:
    """Raises PydanticCustomError for what is no list of token ids."""
    if not isinstance(ids, list) or not ids:
        raise PydanticCustomError("prompt", "must be a text, token ids, or a list of either")
    for token in ids:
        if type(token) is not int or not 0 <= token <= MAX_ID:
            context = {"token": repr(token)[:50]}
            raise PydanticCustomError("prompt", "{token} is not a token id", context)
    return tuple(ids)


def _unsupported(field: str, instead: str) -> PydanticCustomError:
    context: dict[str, Any] = {"at": (field,), "instead": instead}
    return PydanticCustomError(UNSUPPORTED, "not supported here; {instead}", context)


def _false_is_none(value: Any) -> Any:
    return None if value is False else value


_JSON_PROMPT = {
    "description": "a text, token ids, or a list of either: each gets its choices",
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"type": "string"}},
        {"type": "array", "minItems": 1, "items": {"type": "integer"}},
        {
            "type": "array",
            "minItems": 1,
            "items": {"type": "array", "minItems": 1, "items": {"type": "integer"}},
        },
    ],
}


class Completion(Generation):
    """The body of /v1/completions."""

    prompt: Annotated[
        list[str | tuple[int, ...]],
        BeforeValidator(_as_prompts),
        WithJsonSchema(_JSON_PROMPT),
    ]
    max_tokens: Annotated[Integer, Field(ge=0, le=10_000_000)] | None = Field(
        default=None, description="0: only with echo or prompt_logprobs"
    )
    max_completion_tokens: Tokens | None = Field(
        default=None, description="another name of max_tokens, which comes first"
    )
    logprobs: Annotated[Integer, Field(ge=0, le=5)] | None = None
    echo: bool | None = Field(default=False, description="the prompt before the text")
    prompt_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = Field(
        default=None, description="vLLM's: the prompt's logprobs beside the text; not with stream"
    )
    best_of: Choices | None = Field(
        default=None, description="the n likeliest of so many choices; not with stream"
    )
    add_special_tokens: bool | None = Field(
        default=None, description="as <bos>, before a prompt that is a text; default: true"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        unsupported.refuse(body, unsupported.TEXT)
        return body

    @field_validator("logprobs", "prompt_logprobs", mode="before")
    @classmethod
    def _without_false(cls, value: Any) -> Any:
        return _false_is_none(value)

    @field_validator("best_of")
    @classmethod
    def _same_as_n(cls, best_of: int | None, others: ValidationInfo) -> int | None:
        """In place of Generation's: here the best of several can be told."""
        if best_of is not None and best_of < (others.data.get("n") or 1):
            raise PydanticCustomError("best_of", "must be at least n")
        return best_of

    @model_validator(mode="after")
    def _fits_together(self) -> "Completion":
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            at: dict[str, Any] = {"at": ("max_tokens",)}
            raise PydanticCustomError("length", "0 only with echo or prompt_logprobs", at)
        if self.stream and self.prompt_logprobs is not None:
            raise _unsupported("prompt_logprobs", "leave out stream, or use echo")
        if self.stream and self.copies > (self.n or 1):
            raise _unsupported("best_of", "leave out stream, or use n")
        return self

    @property
    def token_limit(self) -> int | None:
        """See Generation. Load generators send both names with the same number."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def prompts(self) -> list[Prompt]:
        """Those that are continued."""
        return list(self.prompt)

    @property
    def copies(self) -> int:
        """How many answers each prompt gets, of which `n` are told."""
        return max(self.n or 1, self.best_of or 1)

    @property
    def alternatives(self) -> int | None:
        """See Generation. The best is known by its logprobs."""
        if self.logprobs is None and self.copies > (self.n or 1):
            return 0
        return self.logprobs

    @property
    def prompt_alternatives(self) -> int | None:
        """How many alternatives to compute for each token of the prompt; None: no logprobs."""
        wanted = [self.prompt_logprobs]
        if self.echo:
            wanted.append(self.logprobs)
        return max((each for each in wanted if each is not None), default=None)
