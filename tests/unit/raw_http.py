"""A server with Canopy's HTTP protocol around an echoing application, and bare sockets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from uvicorn.server import ServerState

from api.server.limits import Limits, Network
from api.server.serve import configuration

SECONDS = 10.0


@dataclass
class Response:
    """One response as it stood on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Echo:
    """Answers with method, path and body; `requests` are those received, in order."""

    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)  # set: answers to /hold end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI entrance."""
        body = await read_all(receive)
        self.requests.append((scope["method"], scope["path"], body))
        if scope["path"] == "/hold":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            await self.hold.wait()
            await send({"type": "http.response.body", "body": b"ended"})
            return
        content = f"{scope['method']} {scope['path']} ".encode() + body
        headers = [(b"content-length", str(len(content)).encode())]
        if scope["path"] == "/unsized":
            headers = []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


async def read_all(receive: Any) -> bytes:
    """The request's body."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


@contextlib.asynccontextmanager
async def serving(
    application: Any,
    limits: Limits | None = None,
    proxies: tuple[Network, ...] = (),
    *,
    tunnel: bool = False,
) -> AsyncIterator["Site"]:
    """The protocol on a loopback port, without uvicorn's server and its slow ticks."""
    config = configuration(application, limits or Limits(), proxies, tunnel=tunnel)
    config.load()
    state = ServerState()
    protocol: Any = config.http_protocol_class

    def connection() -> asyncio.Protocol:
        made: asyncio.Protocol = protocol(config=config, server_state=state, app_state={})
        return made

    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
    try:
        yield Site(server, state)
    finally:
        server.close()
        open_connections: list[Any] = list(state.connections)
        for each in open_connections:
            each.transport.abort()
        await asyncio.sleep(0)
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)


@dataclass(frozen=True)
class Site:
    """A running server. `connections`: the protocols of the open ones."""

    server: asyncio.Server
    state: ServerState

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self.server.sockets[0].getsockname()[:2]
        return host, port

    @property
    def connections(self) -> list[Any]:
        """The open connections' protocols."""
        return list(self.state.connections)


async def exchange(site: Site, *packets: bytes) -> list[Response]:
    """Sends the packets one by one, with time for the server between, and reads to the end."""
    reader, writer = await asyncio.open_connection(*site.address)
    try:
        async with asyncio.timeout(SECONDS):
            for number, packet in enumerate(packets):
                if number:
                    await asyncio.sleep(0.05)
                writer.write(packet)
                await writer.drain()
            return await read_responses(reader)
    finally:
        writer.close()


async def read_responses(reader: asyncio.StreamReader) -> list[Response]:
    """All responses up to the connection's end; nothing may be left over."""
    responses = []
    while True:
        response = await read_response(reader)
        if response is None:
            return responses
        responses.append(response)


async def read_response(reader: asyncio.StreamReader) -> Response | None:
    """The next response; None at the connection's end."""
    line = await reader.readline()
    if not line:
        return None
    version, status, *_ = line.split()
    assert version == b"HTTP/1.1", line
    headers = await read_headers(reader)
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        body = await read_chunks(reader)
    else:
        body = await reader.read()
    return Response(int(status), headers, body)


async def read_headers(reader: asyncio.StreamReader) -> dict[str, str]:
    """A response's headers, names in lower case."""
    headers = {}
    while (line := await reader.readline()) != b"\r\n":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return headers


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body."""
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return body
