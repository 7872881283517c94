"""The fields that say when an answer ends, and what of its end is shown: vLLM's names."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from api.http.parsing import Body, Integer

MAX_STOP_TOKENS = 64
_TokenIds = Annotated[
    list[Annotated[Integer, Field(ge=0, lt=2**32)]], Field(max_length=MAX_STOP_TOKENS)
]


def _not_none(ids: Any) -> Any:
    return [] if ids is None else ids


class EndingFields(Body):
    """See the module."""

    min_tokens: Annotated[Integer, Field(ge=0, le=10_000_000)] | None = Field(
        default=None, description="no end before so many tokens"
    )
    ignore_eos: bool | None = Field(default=False, description="go on to max_tokens")
    stop_token_ids: Annotated[_TokenIds, BeforeValidator(_not_none)] = Field(
        default_factory=list, description="tokens that end the answer, too"
    )
    skip_special_tokens: bool | None = Field(
        default=True, description="false: control tokens in the answer are shown as text"
    )
    include_stop_str_in_output: bool | None = Field(
        default=False, description="the text ends with the stop string that ended it"
    )

    def ending(self) -> dict[str, Any]:
        """As fields of Sampling."""
        return {
            "min_tokens": self.min_tokens or 0,
            "ignore_eos": bool(self.ignore_eos),
            "stop_token_ids": tuple(self.stop_token_ids),
            "skip_special_tokens": self.skip_special_tokens is not False,
            "include_stop": bool(self.include_stop_str_in_output),
        }
