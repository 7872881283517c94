"""A node's answers to commands on its own machine, whatever its user may do at the broker.

Over a Unix socket in CANOPY_HOME, which is its owner's alone: one line of JSON in, one out. The
command line's side is `cli/local_nodes.py`.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from broker.wire import Drain, Restart, Resume, Stop
from worker.node import Node

REQUEST_SECONDS = 5.0
PRIVATE = 0o077  # umask: what is made is its owner's alone

_ORDERS: dict[str, Callable[[], Drain | Resume | Restart | Stop]] = {
    "drain": Drain,
    "resume": Resume,
    "restart": Restart,
    "stop": Stop,
}

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def serving(node: Node, folder: Path, log_file: str) -> AsyncIterator[None]:
    """Answers while the block runs. Where no socket can be made, the node does without."""
    conversations: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(_converse(node, log_file, reader, writer))
        conversations.add(task)
        task.add_done_callback(conversations.discard)

    server = None
    file = folder / f"{node.name}.sock"
    try:
        server = await _listen(converse, file)
    except OSError as error:
        log.warning("commands on this machine cannot ask this node", reason=str(error))
    try:
        yield
    finally:
        if server is not None:
            server.close()
            _remove(file)
        for task in conversations:
            task.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)


async def _listen(converse: Any, file: Path) -> asyncio.Server | None:
    """None if another process of that name answers there. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # the path of a Unix socket has at most 107 bytes, so it leads through the open folder
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    path = f"/proc/self/fd/{folder}/{file.name}"
    before = os.umask(PRIVATE)
    try:
        if await _answers(path):
            return None
        _remove(file)  # a dead process left it
        return await asyncio.start_unix_server(converse, path)
    finally:
        os.umask(before)
        os.close(folder)


def _remove(file: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        file.unlink()


async def _answers(path: str) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


async def _converse(
    node: Node, log_file: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Serves one request; a command that leaves or sends nonsense is dropped."""
    with contextlib.suppress(OSError, TimeoutError, ValueError, LookupError, TypeError):
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                command = str(json.loads(await reader.readline())["command"])
                answer = _answer(node, command, log_file)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        finally:
            writer.close()


def _answer(node: Node, command: str, log_file: str) -> dict[str, Any]:
    """Raises ValueError for an unknown command."""
    if command == "state":
        state: dict[str, Any] = msgspec.to_builtins(node.state())
        return {"state": state, "log": log_file, "connected": node.link.connected}
    if command not in _ORDERS:
        raise ValueError(command)
    node.on_control(_ORDERS[command]())
    return {"done": True}
