"""How an answer is wanted, as a plain value."""

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from api.preferences.models import AnswerStyle
from broker.wire import Sampling

Number = TypeVar("Number", float, int)


@dataclass(frozen=True, slots=True)
class Style:
    """Instructions, and sampling; None where nothing is set."""

    instructions: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None

    def sampling(self, default: Sampling) -> Sampling:
        """The default with what is set here."""
        own = {"temperature": self.temperature, "top_p": self.top_p}
        return msgspec.structs.replace(
            default,
            defaulted=tuple(name for name in default.defaulted if own.get(name) is None),
            temperature=_first(self.temperature, default.temperature),
            top_p=_first(self.top_p, default.top_p),
            max_tokens=_first(self.max_tokens, default.max_tokens),
        )

    def refined_by(self, other: "Style") -> "Style":
        """This style with what `other` sets; both instructions, this one's first."""
        texts = [text for text in (self.instructions, other.instructions) if text]
        return Style(
            instructions="\n\n".join(texts),
            temperature=_first(other.temperature, self.temperature),
            top_p=_first(other.top_p, self.top_p),
            max_tokens=_first(other.max_tokens, self.max_tokens),
        )


def of_row(row: AnswerStyle | None) -> Style:
    """The stored style; an empty one for None."""
    if row is None:
        return Style()
    return Style(row.instructions, row.temperature, row.top_p, row.max_tokens)


def _first(value: Number | None, default: Number | None) -> Number | None:
    return default if value is None else value
