"""Text as it grows: stop strings across token borders. Knows nothing of tokens or tensors."""


class StopFilter:
    """Passes text on until a stop string appears; the stop string and what follows are swallowed.

    Text that may be the beginning of a stop string is held back until the next piece decides. A
    character costs the same however long the stop strings are and whatever the text is (Knuth,
    Morris and Pratt).
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._matches = [_Match(stop) for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that is safe to show now; sets `stopped` when a stop string is complete."""
        if self.stopped:
            return ""
        text = self._held + piece
        begins = [
            len(self._held) + begin
            for match in self._matches
            if (begin := match.push(piece)) is not None
        ]
        if begins:
            self.stopped, self._held = True, ""
            return text[: min(begins)]
        undecided = max([match.length for match in self._matches], default=0)
        safe = len(text) - undecided
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """What was held back, when no more text will come."""
        held, self._held = self._held, ""
        return held


class _Match:
    """How much of one stop string the text so far ends with."""

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._shorter = _borders(stop)
        self.length = 0

    def push(self, piece: str) -> int | None:
        """Where in `piece` the stop string begins once it is complete, below 0 if in an earlier
        one; else None.
        """
        for at, character in enumerate(piece, 1):
            while self.length and self._stop[self.length] != character:
                self.length = self._shorter[self.length - 1]
            if self._stop[self.length] == character:
                self.length += 1
            if self.length == len(self._stop):
                return at - self.length
        return None


def _borders(text: str) -> list[int]:
    """Of each beginning of `text` the length of the longest shorter one that it ends with."""
    borders = [0] * len(text)
    length = 0
    for at in range(1, len(text)):
        while length and text[at] != text[length]:
            length = borders[length - 1]
        if text[at] == text[length]:
            length += 1
        borders[at] = length
    return borders
