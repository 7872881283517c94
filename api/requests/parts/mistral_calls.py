"""Calls as Mistral's models write them: `[{...}, ...]`, and newer ones `NAME[ARGS]{...}`."""

import re

from api.requests.parts.calls import CallBody, Calls
from api.requests.parts.json_calls import JSONCalls
from api.requests.parts.json_text import JSONBoundary
from api.requests.parts.model import Part, TextPart

_HEAD = re.compile(r"\s*([\w-]{1,256})\s*(?:\[CALL_ID\][^\[{]{0,80})?(?:\[ARGS\])?\s{0,5}(?=\{)")
_PREFIX = re.compile(r"\s*[\w-]{1,256}\s*(?:\[[^{]{0,100})?")


class MistralCalls:
    """Keeps the CallBody protocol: finds out which of the two ways it is."""

    def __init__(self, mark: str, calls: Calls) -> None:
        self._mark = mark
        self._calls = calls
        self._text = ""
        self._way: CallBody | None = None

    @property
    def rest(self) -> str | None:
        """See CallBody."""
        return self._way.rest if self._way is not None else None

    def feed(self, text: str) -> list[Part]:
        """See CallBody."""
        if self._way is not None:
            return self._way.feed(text)
        self._text += text
        first = self._text.lstrip()[:1]
        if not first:
            return []
        if first in "[{":
            self._way = JSONCalls(self._mark, self._calls, lists=True)
        else:
            self._way = NamedCall(self._mark, self._calls)
        return self._way.feed(self._text)

    def end(self) -> list[Part]:
        """See CallBody."""
        return self._way.end() if self._way is not None else [TextPart(self._mark + self._text)]


class NamedCall:
    """`NAME[ARGS]{...}`, with the id that the newest models write between them left out."""

    def __init__(self, mark: str, calls: Calls) -> None:
        self.rest: str | None = None
        self._mark = mark
        self._calls = calls
        self._text = ""
        self._boundary: JSONBoundary | None = None

    def feed(self, text: str) -> list[Part]:
        """See CallBody."""
        self._text += text
        parts: list[Part] = []
        if self._boundary is None:
            self._begin(parts)
        if self._boundary is not None:
            self._arguments(self._boundary, parts)
        return parts

    def end(self) -> list[Part]:
        """See CallBody."""
        if self._boundary is not None:
            return []
        return [TextPart(self._mark + self._text)]

    def _begin(self, parts: list[Part]) -> None:
        head = _HEAD.match(self._text)
        if head is not None:
            parts.append(self._calls.begin(head[1]))
            self._boundary, self._text = JSONBoundary(), self._text[head.end() :]
        elif _PREFIX.fullmatch(self._text) is None:
            parts.append(TextPart(self._mark))
            self.rest = self._text

    def _arguments(self, boundary: JSONBoundary, parts: list[Part]) -> None:
        text, end = self._text, boundary.push(self._text)
        if end is not None:
            self.rest = text[end:]
        self._text = ""
        if text[:end]:
            parts.append(self._calls.arguments(text[:end]))
