"""The launcher's side of `control.py`: answers the requests of commands."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from cli.control import SOCKET, Message, address
from cli.home import Home

Answer = Callable[[Message], AsyncGenerator[Message]]

_REQUEST_SECONDS = 5.0


@contextlib.asynccontextmanager
async def serving(home: Home, answer: Answer) -> AsyncIterator[None]:
    """Answers requests while the block runs, and cancels the open ones at its end."""
    conversations: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(_converse(reader, writer, answer))
        conversations.add(task)
        task.add_done_callback(conversations.discard)

    with address(home) as path:
        server = await asyncio.start_unix_server(converse, path)
        try:
            yield
        finally:
            server.close()
            for task in conversations:
                task.cancel()
            await asyncio.gather(*conversations, return_exceptions=True)
            with contextlib.suppress(OSError):  # the next start replaces it
                (home.run / SOCKET).unlink(missing_ok=True)


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer
) -> None:
    """Serves one request; a command that leaves or sends nonsense is dropped."""
    with contextlib.suppress(OSError, TimeoutError, ValueError):
        try:
            request = json.loads(await asyncio.wait_for(reader.readline(), _REQUEST_SECONDS))
            async with aclosing(answer(request)) as messages:
                async for message in messages:
                    writer.write(json.dumps(message).encode() + b"\n")
                    await writer.drain()
                    if reader.at_eof():
                        return
        finally:
            writer.close()
