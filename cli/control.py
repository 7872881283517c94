"""How a command talks to a running launcher: JSON lines over a Unix socket in CANOPY_HOME/run.

The command sends one request and reads messages until the launcher (`control_server.py`) has
carried it out. Interrupting the command closes the connection; the launcher then stops after its
present step. Standard library only, without asyncio, whose import `status` does not need.
"""

import contextlib
import json
import os
import socket
from collections.abc import Generator, Iterator
from typing import Any

from cli.errors import UnreachableError
from cli.home import Home

Message = dict[str, Any]

SOCKET = "launcher.sock"


def request(
    home: Home, message: Message, within: float | None = None
) -> Generator[Message, None, None]:
    """Sends a request to the launcher at once; returns its answers, to be read as they come.

    `within`: seconds that an answer may take; None: any time. Raises UnreachableError, also later.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(within)
        with address(home) as path:
            connection.connect(path)
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError as error:
        connection.close()
        reason = f"The launcher does not answer: {error}."
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            reason = "The running instance takes no requests: it is starting, or older than this."
        raise UnreachableError(reason) from error
    return _answers(connection)


def _answers(connection: socket.socket) -> Generator[Message, None, None]:
    with connection, connection.makefile() as lines:
        try:
            yield from map(json.loads, lines)
        except TimeoutError as error:
            raise UnreachableError("The launcher does not answer.") from error


@contextlib.contextmanager
def address(home: Home) -> Iterator[str]:
    """The socket's address while the block runs. It leads through an open folder, since the path
    of a Unix socket has at most 107 bytes.
    """
    folder = os.open(home.run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET}"
    finally:
        os.close(folder)
