"""How a command talks to a running launcher: JSON lines over a Unix socket in CANOPY_HOME/run.

The command sends one request and reads messages until the launcher has carried it out. Interrupting
the command closes the connection; the launcher then stops after its present step.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

from cli.errors import UnreachableError
from cli.home import Home

Message = dict[str, Any]
Answer = Callable[[Message], AsyncGenerator[Message]]

_SOCKET = "launcher.sock"
_REQUEST_SECONDS = 5.0


@contextlib.asynccontextmanager
async def serving(home: Home, answer: Answer) -> AsyncIterator[None]:
    """Answers requests while the block runs, and cancels the open ones at its end."""
    conversations: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(_converse(reader, writer, answer))
        conversations.add(task)
        task.add_done_callback(conversations.discard)

    with _address(home) as address:
        server = await asyncio.start_unix_server(converse, address)
        try:
            yield
        finally:
            server.close()
            for task in conversations:
                task.cancel()
            await asyncio.gather(*conversations, return_exceptions=True)
            with contextlib.suppress(OSError):  # the next start replaces it
                (home.run / _SOCKET).unlink(missing_ok=True)


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


def request(home: Home, message: Message) -> Iterator[Message]:
    """Sends a request to the launcher; yields its answers. Raises UnreachableError without one."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            with _address(home) as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise UnreachableError(
                "The running instance takes no requests yet: it is starting, or older than this."
            ) from error
        connection.sendall(json.dumps(message).encode() + b"\n")
        with connection.makefile() as lines:
            yield from map(json.loads, lines)


@contextlib.contextmanager
def _address(home: Home) -> Iterator[str]:
    """The socket's address while the block runs. It leads through an open folder, since the path
    of a Unix socket has at most 107 bytes.
    """
    folder = os.open(home.run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{_SOCKET}"
    finally:
        os.close(folder)
