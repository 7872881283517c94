"""How a command talks to the launcher of a running instance: a Unix socket in CANOPY_HOME/run, a JSON object a line.

The command sends one request and reads what happens until the launcher has done it. A command that is interrupted
closes the connection, and the launcher stops after the step it is at.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

from cli.errors import CliError
from cli.home import Home

Message = dict[str, Any]
Answer = Callable[[Message], AsyncGenerator[Message]]

_SOCKET = "launcher.sock"
_REQUEST_SECONDS = 5.0


@contextlib.asynccontextmanager
async def serving(home: Home, answer: Answer) -> AsyncIterator[None]:
    """Answers requests for as long as the block runs; what is being answered at its end is cancelled."""
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
            with contextlib.suppress(OSError):  # the next start takes its place
                (home.run / _SOCKET).unlink(missing_ok=True)


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer
) -> None:
    """One request. A command that goes away, or that says nothing sensible, gets no more of our time."""
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


def ask(home: Home, request: Message) -> Iterator[Message]:
    """Sends a request to the launcher and yields what it says. Raises CliError if there is no launcher to ask."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            with _address(home) as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise CliError(
                "The running instance cannot be asked yet: it is starting, or older than this."
            ) from error
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile() as lines:
            yield from map(json.loads, lines)


@contextlib.contextmanager
def _address(home: Home) -> Iterator[str]:
    """The socket's address while the block runs: through the open folder, as no path of over 107 bytes will do."""
    folder = os.open(home.run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{_SOCKET}"
    finally:
        os.close(folder)
