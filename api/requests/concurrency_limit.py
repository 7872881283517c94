"""The way in: few requests at a time are between their arrival and their job's way to the broker.

In a burst all requests otherwise move in step: each waits at every turn of the event loop for all the others, so the
first job leaves when nearly all of them are read, and until then the engines are idle. With 256 requests at once the
first token came after 30 ms instead of 110 to 180, the median after 130 to 180 instead of 220 to 380, the last one no
later.

Those who wait take turns by sender, so that a burst of one sender's requests waits behind itself.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from contextvars import ContextVar

_MOST = 32  # enough that publishing and its confirms are still shared
_SECONDS = (
    0.05  # whoever takes longer waits for something else, a database perhaps, and holds up nobody
)


class Entrance:
    """Where requests wait for their turn: in order for each sender, and the senders in turn."""

    def __init__(self, most: int = _MOST, seconds: float = _SECONDS) -> None:
        self._free = most
        self._seconds = seconds
        self._waiting: dict[
            bytes, deque[asyncio.Future[None]]
        ] = {}  # by sender; the first one is next

    def turn(self, sender: bytes) -> "Turn":
        """A context: entered when it is one's turn, over at its end, with `submitted`, or after `seconds`."""
        return Turn(self, sender, self._seconds)

    async def acquire(self, sender: bytes) -> None:
        """Takes a place, if need be after waiting for one."""
        if self._free:
            self._free -= 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(sender, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # the place came at the same moment
                self.release()
            raise

    def release(self) -> None:
        """Gives a place to the next one who waits, or keeps it free."""
        while self._waiting:
            sender, places = next(iter(self._waiting.items()))
            place = places.popleft()
            del self._waiting[sender]
            if places:
                self._waiting[sender] = places  # behind the other senders
            if not place.done():  # its request may have been given up meanwhile
                place.set_result(None)
                return
        self._free += 1


class Turn:
    """One request's."""

    def __init__(self, entrance: Entrance, sender: bytes, seconds: float) -> None:
        self._entrance = entrance
        self._sender = sender
        self._seconds = seconds
        self._expiry: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._entrance.acquire(self._sender)
        self._expiry = asyncio.get_running_loop().call_later(self._seconds, self.end)
        _current.set(self)

    async def __aexit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """The next one's turn; once."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
            self._entrance.release()


_current: ContextVar[Turn | None] = ContextVar("turn", default=None)


def submitted() -> None:
    """This request's job is on its way: what follows is waiting for the answer."""
    if (turn := _current.get()) is not None:
        turn.end()


def sender_of(headers: Iterable[tuple[bytes, bytes]], address: str) -> bytes:
    """Who sent a request with these headers, before anything of it is checked: its credentials as they stand, or its
    network address.
    """
    for name, value in headers:
        if name in {b"authorization", b"cookie"}:
            return value
    return address.encode()
