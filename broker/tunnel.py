"""AMQP through the pages' web server, for machines that reach nothing else of the first one.

`https://USER:PASSWORD@HOST/PATH?vhost=V` says where the pages are. Each connection goes through a
WebSocket there. pika knows sockets alone, so it speaks to a listener on loopback that takes one
connection and passes its bytes on.
"""

import asyncio
import base64
import contextlib
import logging
import ssl
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from broker.addresses import Address
from broker.errors import AccessRefused, BrokerError, ConnectionLost
from broker.tls import client_context
from broker.tunnel_protocol import (
    LARGEST_MESSAGE,
    PATH,
    PING_SECONDS,
    PONG_SECONDS,
    READ_BYTES,
    SUBPROTOCOL,
)

CLOSE_SECONDS = 1.0

_LOOPBACK = "127.0.0.1"
_REASONS = {
    404: "there is no tunnel: start the first machine with ./canopy up --tunnel",
    429: "too many wrong passwords came from this address: wait a minute",
    503: "its broker is not reached, or all tunnels are taken: try again later",
}


class Tunnel:
    """A WebSocket for one connection of pika's, which finds it at `url`."""

    def __init__(self, socket: ClientConnection) -> None:
        self.url = ""
        self._socket = socket
        self._server: asyncio.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, address: Address) -> "Tunnel":
        """Raises AccessRefused, ConnectionLost, and as TLS does: OSError."""
        tunnel = cls(await _connect(address))
        try:
            tunnel._server = await asyncio.start_server(
                tunnel._accept, _LOOPBACK, 0, limit=READ_BYTES
            )
        except BaseException:
            await tunnel.close()
            raise
        port = tunnel._server.sockets[0].getsockname()[1]
        tunnel.url = _local_url(address, port)
        return tunnel

    async def close(self) -> None:
        """Ends it; its connection is lost."""
        if self._server is not None:
            self._server.close()
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        await self._socket.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # no coroutine: asyncio before 3.12 logs a traceback when a task of its own is cancelled
        if self._server is not None:
            self._server.close()  # it was for this connection alone
        self._serving = asyncio.create_task(self._serve(reader, writer), name="tunnel")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes bytes both ways until either side ends."""
        directions = [
            asyncio.create_task(self._outward(reader), name="tunnel outward"),
            asyncio.create_task(self._inward(writer), name="tunnel inward"),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            writer.transport.abort()  # who reads no more must not keep it open
            await self._socket.close()

    async def _outward(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, ConnectionClosed):
            while data := await reader.read(READ_BYTES):
                await self._socket.send(data)

    async def _inward(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ConnectionClosed):
            async for message in self._socket:
                if isinstance(message, str):
                    return  # no tunnel of ours says that
                writer.write(message)
                await writer.drain()


async def _connect(address: Address) -> ClientConnection:
    # every refusal would be logged; our callers report it
    logging.getLogger("websockets.client").setLevel(logging.CRITICAL)
    parts = urlsplit(address.url)
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    tls: ssl.SSLContext | None = None
    if address.secure:
        tls = client_context(address.fingerprint)
    try:
        return await open_websocket(
            _websocket_url(address),
            additional_headers=headers,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            max_size=LARGEST_MESSAGE,
            ping_interval=PING_SECONDS,
            ping_timeout=PONG_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ssl=tls,
        )
    except InvalidStatus as error:
        raise _refusal(address, error.response.status_code) from error
    except (WebSocketException, TimeoutError) as error:
        raise ConnectionLost(f"{address.place}: {error or 'no answer'}") from error


def _refusal(address: Address, status: int) -> BrokerError:
    if status == 401:
        return AccessRefused("the broker refused the user name or password")
    reason = _REASONS.get(status, f"the web server answers {status}, not with a tunnel")
    return ConnectionLost(f"{address.place}: {reason}")


def _websocket_url(address: Address) -> str:
    parts = urlsplit(address.url)
    scheme = "ws"
    if address.secure:
        scheme = "wss"
    path = parts.path.rstrip("/").removesuffix(PATH)
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{path}{PATH}"


def _local_url(address: Address, port: int) -> str:
    """Where pika finds the tunnel: the same login and virtual host, on loopback."""
    parts = urlsplit(address.url)
    login, _, _ = parts.netloc.rpartition("@")
    options: dict[str, Any] = parse_qs(parts.query)
    (vhost,) = options.get("vhost", ["/"])
    return f"amqp://{login}@{_LOOPBACK}:{port}/{quote(vhost, safe='')}"
