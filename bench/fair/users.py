"""The two kinds of users: one asks now and then, the other has a thousand requests in the line at any time."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable

from bench.fair.asking import Asking, Question, Track

_CONNECTING = 64  # of the flood's connections, at the same time: the listener's own line is finite
_PATIENCE = 30.0  # seconds after the last question for those that have not begun


class Refused(Exception):
    """The service refused a request; the text has its answer."""


class Flood:
    """`size` requests at any time: each that ends is followed by another. `lengths()` gives the next one's tokens."""

    def __init__(
        self, port: int, key: str, size: int, lengths: Callable[[], int], *, flex: bool = False
    ) -> None:
        self.tracks: list[Track] = []
        self.error = ""
        self.taken_in = (
            asyncio.Event()
        )  # the service has accepted all that were sent at the beginning, or one failed
        self._port = port
        self._key = key
        self._size = size
        self._lengths = lengths
        self._flex = flex
        self._open: set[Asking] = set()
        self._connecting = asyncio.Semaphore(_CONNECTING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = False
        self._accepted_count = 0

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return sum(asking.track.first is None for asking in self._open)

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """All requests are sent at once when the block begins, and given up when it ends. Raises Refused."""
        try:
            for _ in range(self._size):
                self._ask_soon()
            yield
            if self.error:
                raise Refused(f"a request of the flood failed: {self.error}")
        finally:
            self._over = True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for asking in self._open:
                asking.abort()

    def tokens_between(self, begin: float, end: float) -> int:
        """Tokens that came in that time."""
        return sum(
            count for track in self.tracks for at, count in track.tokens if begin <= at < end
        )

    def _ask_soon(self) -> None:
        task = asyncio.create_task(self._ask())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self) -> None:
        question = Question(self._key, self._lengths(), self._flex)
        try:
            async with self._connecting:
                asking = await Asking.start(self._port, question, self._ended, self._accepted)
        except OSError as error:
            self._fail(repr(error))
            return
        self._open.add(asking)
        self.tracks.append(asking.track)

    def _accepted(self) -> None:
        self._accepted_count += 1
        if self._accepted_count == self._size:
            self.taken_in.set()

    def _fail(self, error: str) -> None:
        self.error = self.error or error
        self.taken_in.set()

    def _ended(self, asking: Asking) -> None:
        self._open.discard(asking)
        if asking.track.error:
            self._fail(asking.track.error)
        if not self._over and not self.error:
            self._ask_soon()


async def now_and_then(
    port: int,
    question: Question,
    pause: tuple[float, float],
    dice: random.Random,
    more: Callable[[int], bool],
) -> list[Track]:
    """Asks with random pauses, whether or not the former questions are answered, as long as there are to be `more` than
    so many. Those that have not ended long after the last one are given up. Raises OSError, Refused.
    """
    left = asyncio.Event()
    asked: list[Asking] = []

    def ended(_asking: Asking) -> None:
        left.set()

    try:
        next_at = time.perf_counter()
        while more(len(asked)):
            asked.append(await Asking.start(port, question, ended))
            next_at += dice.uniform(*pause)
            await asyncio.sleep(max(0.0, next_at - time.perf_counter()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while any(each.track.ended is None and not each.track.error for each in asked):
                    left.clear()
                    await left.wait()
    finally:
        for each in asked:
            each.abort()
    if errors := [each.track.error for each in asked if each.track.error]:
        raise Refused(f"a question of the light user failed: {errors[0]}")
    return [each.track for each in asked]
