"""White space that a parser cannot decide on yet, kept outside of it.

All parsers leave out the white space around calls and reasoning, so they hold it back until they
know what follows. A model may write it for thousands of pieces, and each of them would be searched
together with all those before it.
"""

from api.requests.parts.model import Part, PartParser


class PendingSpace:
    """Keeps the PartParser protocol: gives `parser` white space together with what follows it."""

    def __init__(self, parser: PartParser) -> None:
        self._parser = parser
        self._space: list[str] = []

    def feed(self, text: str) -> list[Part]:
        """See PartParser."""
        if not text or text.isspace():
            self._space.append(text)
            return []
        if self._space:
            text, self._space = "".join(self._space) + text, []
        return self._parser.feed(text)

    def end(self, *, cut: bool = False) -> list[Part]:
        """See PartParser."""
        space, self._space = "".join(self._space), []
        parts = self._parser.feed(space) if space else []
        return parts + self._parser.end(cut=cut)
