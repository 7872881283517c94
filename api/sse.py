"""Server-sent events: formatting, keep-alive, and the response that carries them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol, TypeVar

import msgspec
from django.http import StreamingHttpResponse

KEEPALIVE = 15.0  # seconds of silence after which a comment is sent

T = TypeVar("T")
_encode = msgspec.json.encode


class Closable(Protocol):
    """What can be closed, any number of times."""

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


async def ticking(source: AsyncIterator[T], seconds: float | None = None) -> AsyncIterator[T | None]:
    """The source's items, and None after every `seconds` (default: KEEPALIVE) without one.

    The source's `__anext__` must bear being cancelled (broker streams do; generators do not).
    """
    while True:
        try:
            async with asyncio.timeout(seconds or KEEPALIVE):
                item = await anext(source)
        except TimeoutError:
            yield None
        except StopAsyncIteration:
            return
        else:
            yield item


class EventStream(StreamingHttpResponse):
    """Events as an HTTP response that no proxy buffers.

    `source`: what the events are made of. handler.py closes it whatever happens, even if the client left before the
    first event was asked for. `endless`: the server's stop ends them instead of waiting for them.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        source: Closable | None = None,
        *,
        endless: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            events,
            content_type="text/event-stream; charset=utf-8",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})},
        )
        self.endless = endless
        self._events = events
        self._source = source

    def __aiter__(self) -> AsyncIterator[bytes]:
        # Without Django's two wrapping generators, closing reaches ours at once.
        return self._events

    async def aclose(self) -> None:
        """Ends the events and their source."""
        await self._events.aclose()
        if self._source is not None:
            await self._source.aclose()
