"""A TCP proxy between a process and the broker, to break or slow down their connection."""

import asyncio
import contextlib
from typing import Any, Self
from urllib.parse import urlsplit

from tests.listening import READ_BYTES, connected, listening

CHUNKS_UNDER_WAY = 1000

_Chunks = asyncio.Queue[
    tuple[float, bytes]
]  # when to pass them on (the loop's time); the last one is empty


class Proxy:
    """Forwards bytes to (host, port). `async with Proxy(...) as proxy: proxy.port`.

    `delay`: seconds that every byte takes in either direction, from now on.
    """

    def __init__(self, host: str, port: int, *, delay: float = 0.0) -> None:
        self.port = 0
        self.delay = delay
        self._target = (host, port)
        self._listening: contextlib.AbstractAsyncContextManager[int]
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    @classmethod
    def before(cls, amqp_url: str) -> Self:
        """A proxy in front of the broker of that address."""
        parts = urlsplit(amqp_url)
        return cls(parts.hostname or "", parts.port or 0)

    def through(self, amqp_url: str) -> str:
        """The address that leads through this proxy."""
        return amqp_url.replace(f":{self._target[1]}/", f":{self.port}/")

    async def __aenter__(self) -> Self:
        self._listening = listening(self._serve)
        self.port = await self._listening.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._listening.__aexit__(*error)

    def cut(self) -> None:
        """Every connection ends at once, on both sides."""
        self._flowing.set()
        for writer in list(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Nothing flows any more, not even the end of a connection: it is half-open."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Bytes flow again, those held back first."""
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with connected(*self._target) as (far_reader, far_writer):
                self._writers |= {writer, far_writer}
                await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
                self._writers -= {writer, far_writer}
        except OSError:
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunks: _Chunks = asyncio.Queue(CHUNKS_UNDER_WAY)
        await asyncio.gather(self._take(reader, chunks), self._give(chunks, writer))

    async def _take(self, reader: asyncio.StreamReader, chunks: _Chunks) -> None:
        chunk = b"begin"
        while chunk:
            try:
                chunk = await reader.read(READ_BYTES)
            except ConnectionError:
                chunk = b""
            await chunks.put((asyncio.get_running_loop().time() + self.delay, chunk))

    async def _give(self, chunks: _Chunks, writer: asyncio.StreamWriter) -> None:
        """Passes the chunks on in time; a closed writer swallows the rest, so that reading ends."""
        loop = asyncio.get_running_loop()
        chunk = b"begin"
        while chunk:
            due, chunk = await chunks.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            await self._flowing.wait()
            with contextlib.suppress(ConnectionError):
                writer.write(chunk)
                await writer.drain()
        writer.close()
