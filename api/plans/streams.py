"""Bounds how many streams of one answer a user reads at this process."""

from collections import Counter

from api.http.sse import Closable
from api.plans import plans, refusals
from api.plans.limits import STREAMS

Reading = tuple[int, tuple[str, int]]  # user, answer


class AnswerStreams:
    """Counts them."""

    def __init__(self) -> None:
        self.open_streams: Counter[Reading] = Counter()

    def open(
        self, user: int, answer: tuple[str, int], source: Closable | None = None
    ) -> "CountedStream":
        """One more stream; to be closed, with its source. Raises ApiError 429."""
        subject = plans.current.get()
        most = None if subject is None else subject.limits.streams
        if most is None:
            most = STREAMS
        if self.open_streams[user, answer] >= most:
            raise refusals.too_many_streams(most)
        self.open_streams[user, answer] += 1
        return CountedStream(self, (user, answer), source)

    def closed(self, reading: Reading) -> None:
        """One less."""
        self.open_streams[reading] -= 1
        if self.open_streams[reading] <= 0:
            del self.open_streams[reading]


class CountedStream:
    """Counts until it is closed; closing it again does nothing."""

    def __init__(self, streams: AnswerStreams, reading: Reading, source: Closable | None) -> None:
        self._streams = streams
        self._reading: Reading | None = reading
        self._source = source

    async def aclose(self) -> None:
        """The reader has left."""
        reading, self._reading = self._reading, None
        if reading is not None:
            self._streams.closed(reading)
        if self._source is not None:
            await self._source.aclose()
