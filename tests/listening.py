"""Servers and connections of tests that leave nothing behind.

A connection that is left for the garbage collector fails whatever test runs by then.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

READ_BYTES = 65536

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@contextlib.asynccontextmanager
async def listening(
    serve: Serve,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    context: ssl.SSLContext | None = None,
    limit: int = READ_BYTES,
) -> AsyncIterator[int]:
    """A TCP server; its port. When it is left, all that it serves is cancelled and closed.

    `context`: of TLS. `limit`: of a line, see asyncio.start_server.
    """
    tasks: set[asyncio.Task[None]] = set()
    writers: set[asyncio.StreamWriter] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # no coroutine: asyncio before 3.12 logs a traceback when a task of its own is cancelled
        writers.add(writer)
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, host, port, ssl=context, limit=limit)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*map(abort, writers))
        await server.wait_closed()


@contextlib.asynccontextmanager
async def connected(
    host: str | None, port: int | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection, closed when it is left."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        await abort(writer)


async def abort(writer: asyncio.StreamWriter) -> None:
    """Ends a connection at once; returns when its socket is closed."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes on what comes, until either end is closed."""
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


def forwarding(host: str | None, port: int | None) -> Serve:
    """Serves each connection by one to there."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with connected(host, port) as (far_reader, far_writer):
            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    return forward
