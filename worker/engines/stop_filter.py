"""Stop strings in a growing text, also across token borders. Knows nothing of tokens."""


class StopFilter:
    """Passes text on until a stop string is complete; swallows that and what follows.

    Text that may begin a stop string is pending until more text decides. A character costs the same
    whatever the stop strings and the text are (Knuth, Morris and Pratt).
    """

    def __init__(self, stops: tuple[str, ...], *, include_stop: bool = False) -> None:
        """`include_stop`: the stop string itself is shown."""
        self._include_stop = include_stop
        self._matchers = [_Matcher(stop) for stop in stops if stop]
        self._pending = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is safe to show now; sets `stopped` once a stop string is complete."""
        if self.stopped:
            return ""
        before = len(self._pending)
        undecided = self._pending + text
        found: list[tuple[int, int]] = []  # where stop strings begin and end
        for matcher in self._matchers:
            begin = matcher.push(text)
            if begin is not None:
                found.append((before + begin, before + begin + matcher.size))
        if found:
            self.stopped, self._pending = True, ""
            begin, end = min(found)
            return undecided[: end if self._include_stop else begin]
        longest = max((matcher.length for matcher in self._matchers), default=0)
        safe = len(undecided) - longest
        self._pending = undecided[safe:]
        return undecided[:safe]

    def flush(self) -> str:
        """The pending text, when no more will come."""
        pending, self._pending = self._pending, ""
        return pending


class _Matcher:
    """How much of one stop string the text so far ends with (`length` characters)."""

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self.size = len(stop)
        self._borders = _borders(stop)
        self.length = 0

    def push(self, text: str) -> int | None:
        """Where in `text` the stop string begins, once complete; negative: before `text`."""
        for end, character in enumerate(text, 1):
            while self.length and self._stop[self.length] != character:
                self.length = self._borders[self.length - 1]
            if self._stop[self.length] == character:
                self.length += 1
            if self.length == len(self._stop):
                return end - self.length
        return None


def _borders(text: str) -> list[int]:
    """For each prefix of `text`, the length of its longest proper prefix that is also a suffix."""
    borders = [0] * len(text)
    length = 0
    for index in range(1, len(text)):
        while length and text[index] != text[length]:
            length = borders[length - 1]
        if text[index] == text[length]:
            length += 1
        borders[index] = length
    return borders
