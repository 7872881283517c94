"""Server-sent events: formatting, keep-alive, and the response that carries them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Protocol, TypeVar, cast

import msgspec
from django.http import StreamingHttpResponse

CONTENT_TYPE = "text/event-stream; charset=utf-8"
KEEPALIVE = 15.0  # seconds of silence after which a comment is sent

T = TypeVar("T")
_encode = msgspec.json.encode


class Closable(Protocol):
    """Has `aclose`, which may be called any number of times."""

    async def aclose(self) -> None:
        """Closes it."""


def event(name: str, payload: Any) -> bytes:
    """One named event."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(payload))


def data(payload: Any) -> bytes:
    """One unnamed event, as OpenAI's clients read them."""
    return b"data: %b\n\n" % _encode(payload)


def comment(text: str) -> bytes:
    """A line that clients ignore."""
    return b": %b\n\n" % " ".join(text.split()).encode()


class Template:
    """An event whose payload is the same each time, except for one text."""

    _HOLE = "\0"

    def __init__(self, payload_of: Callable[[str], Any]) -> None:
        """`payload_of`: the payload with a text; nothing behind the text may contain a NUL."""
        self._before, self._after = data(payload_of(self._HOLE)).rsplit(_encode(self._HOLE), 1)

    def event(self, text: str) -> bytes:
        """The event with this text."""
        return self._before + _encode(text) + self._after


def ticking(source: AsyncIterator[T], seconds: float | None = None) -> AsyncIterator[T | None]:
    """The source's items, and None after every `seconds` (default: KEEPALIVE) without one.

    The source's `__anext__` is cancelled then and called again: a generator does not survive that.
    """
    return _Ticking(source, seconds or KEEPALIVE)


class _Ticking(AsyncIterator[T | None]):
    """Like `asyncio.timeout` around each item, but with one timer for all items.

    When the timer fires, it compares the clock. Most items are a token, and creating and cancelling
    a timer took longer than everything else that is done here for one.
    """

    def __init__(self, source: AsyncIterator[T], seconds: float) -> None:
        self._source = source
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: asyncio.Task[Any] | None = None  # the task that waits for an item
        self._since = 0.0  # when it began to wait
        self._fired = False

    async def __anext__(self) -> T | None:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        cancelling = task.cancelling()
        self._since = self._loop.time()
        self._waiting = task
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._fire)
        try:
            return await anext(self._source)
        except asyncio.CancelledError:
            fired, self._fired = self._fired, False
            if not fired or task.uncancel() > cancelling:  # cancelled by somebody else, too
                self._stop()
                raise
            return None
        except BaseException:
            self._stop()
            raise
        finally:
            self._waiting = None

    def _fire(self) -> None:
        self._timer = None
        if self._waiting is None:
            return  # the next `__anext__` starts it again
        left = self._since + self._seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._fire)
        else:
            self._fired = True
            self._waiting.cancel()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class EventStream(StreamingHttpResponse):
    """Events as an HTTP response that no proxy buffers.

    `source`: where the events come from. The handler always closes it, even if the client left
    before the first event was read. `endless`: a stopping server ends the stream at once.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        source: Closable | None = None,
        *,
        endless: bool = False,
        headers: dict[str, str] | None = None,
        content_type: str = CONTENT_TYPE,
    ) -> None:
        super().__init__(
            events,
            content_type=content_type,
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})},
        )
        self.endless = endless
        self._events = events
        self._source = source

    def __aiter__(self) -> AsyncIterator[bytes]:
        # Not Django's two wrapping generators: closing this one takes effect at once.
        return self._events

    async def aclose(self) -> None:
        """Ends the events and their source."""
        await self._events.aclose()
        if self._source is not None:
            await self._source.aclose()
