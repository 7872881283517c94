"""What is sought, and where a text has it. Pure."""

import re
from dataclasses import dataclass

MOST_TERMS = 8
BEFORE, AFTER = 60, 140  # characters of a snippet around its first mark
_SPACE = re.compile(r"\s")
_TERM = re.compile(r'["“”„]([^"“”„]+)["“”]|(\S+)')


@dataclass(frozen=True, slots=True)
class Query:
    """Words, parts of words or phrases that a text must have all of, whatever their case."""

    terms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Snippet:
    """A part of a text on one line. `marks`: where the terms are, as (start, end).

    Places count UTF-16 units, as JavaScript does.
    """

    text: str
    marks: list[tuple[int, int]]


def parse(text: str) -> Query:
    """The query that a person typed; further terms than MOST_TERMS are ignored.

    Words between quotation marks stand together. A mark that stands alone is a character like any.
    """
    terms = dict.fromkeys(phrase.strip() or word for phrase, word in _TERM.findall(text))
    terms.pop("", None)
    return Query(tuple(terms)[:MOST_TERMS])


def snippet(text: str, query: Query) -> Snippet:
    """The surroundings of the first place that has one of the terms; else the beginning."""
    pattern = _pattern(query)
    first = pattern.search(text)
    middle = first.start() if first else 0
    start = max(0, middle - BEFORE)
    end = min(len(text), middle + AFTER)
    shown = _SPACE.sub(" ", text[start:end])
    if start > 0:
        shown = "…" + shown
    if end < len(text):
        shown += "…"
    return Snippet(shown, [_units(shown, match) for match in pattern.finditer(shown)])


def _pattern(query: Query) -> re.Pattern[str]:
    longest_first = sorted(query.terms, key=len, reverse=True)
    return re.compile("|".join(re.escape(term) for term in longest_first), re.IGNORECASE)


def _units(text: str, match: re.Match[str]) -> tuple[int, int]:
    return _length(text[: match.start()]), _length(text[: match.end()])


def _length(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
