"""Several streams read as one: the choices of one request."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Self

from broker.stream import Stream
from broker.wire import AnyFrame


class Merged(AsyncIterator[AnyFrame]):
    """The frames of all streams as they come; each names its request. Ends when all have ended.

    Closing it closes the streams, which cancels unfinished jobs. `__anext__` may be cancelled.
    """

    def __init__(self, streams: Iterable[Stream]) -> None:
        self._streams = deque(streams)
        self._arrived = asyncio.Event()
        for stream in self._streams:
            stream.wakes(self._arrived)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnyFrame:
        while True:
            for _ in range(len(self._streams)):
                self._streams.rotate(-1)  # round robin
                frame = self._streams[-1].read_now()
                if frame is not None:
                    return frame
            if all(stream.ended for stream in self._streams):
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()

    async def aclose(self) -> None:
        """Ends it, wherever it is."""
        for stream in self._streams:
            await stream.aclose()
