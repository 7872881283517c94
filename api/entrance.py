"""The way in: few requests at a time are between their arrival and their job's way to the broker.

In a burst all requests otherwise move in step: each waits at every turn of the event loop for all the others, so the
first job leaves when nearly all of them are read, and until then the engines are idle. With 256 requests at once the
first token came after 30 ms instead of 110 to 180, the median after 130 to 180 instead of 220 to 380, the last one no
later.
"""

import asyncio
from contextvars import ContextVar

_MOST = 32  # enough that publishing and its confirms are still shared
_SECONDS = 0.05  # whoever takes longer waits for something else, a database perhaps, and holds up nobody


class Entrance:
    """Where requests wait for their turn, in order."""

    def __init__(self, most: int = _MOST, seconds: float = _SECONDS) -> None:
        self._places = asyncio.Semaphore(most)
        self._seconds = seconds

    def turn(self) -> "Turn":
        """A context: entered when it is one's turn, over at its end, with `submitted`, or after `seconds`."""
        return Turn(self._places, self._seconds)


class Turn:
    """One request's."""

    def __init__(self, places: asyncio.Semaphore, seconds: float) -> None:
        self._places = places
        self._seconds = seconds
        self._expiry: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._places.acquire()
        self._expiry = asyncio.get_running_loop().call_later(self._seconds, self.end)
        _current.set(self)

    async def __aexit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """The next one's turn; once."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
            self._places.release()


_current: ContextVar[Turn | None] = ContextVar("turn", default=None)


def submitted() -> None:
    """This request's job is on its way: what follows is waiting for the answer."""
    if (turn := _current.get()) is not None:
        turn.end()
