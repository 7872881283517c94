"""The largest number of streams that holds, in few tries. Pure."""

STEP = 50  # streams; a finer answer would be noise


class Search:
    """Doubles or halves from `first` until the answer lies between two tries, then halves the interval."""

    def __init__(self, first: int, tries: int) -> None:
        self._next = max(STEP, _rounded(first))
        self._left = tries
        self.holds = 0  # the largest that did
        self.fails: int | None = None  # the smallest that did not

    def next(self) -> int | None:
        """What to try now; None when the tries are used up or nothing lies between the two."""
        if self._left <= 0 or (self.fails is not None and self.fails - self.holds <= STEP):
            return None
        return self._next

    def tell(self, streams: int, held: bool) -> None:
        """What came of a try."""
        self._left -= 1
        if held:
            self.holds = max(self.holds, streams)
        elif self.fails is None or streams < self.fails:
            self.fails = streams
        if self.fails is None:
            self._next = 2 * self.holds
        else:
            self._next = max(STEP, _rounded((self.holds + self.fails) // 2))


def _rounded(streams: int) -> int:
    return streams // STEP * STEP
