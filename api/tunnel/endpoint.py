"""AMQP through a WebSocket, for nodes on machines that reach only the pages (broker/tunnel.py).

Whoever asks names the broker's user of a joined node (HTTP Basic); the broker is asked about it
before anything is passed on. It then sees an ordinary connection, on which that user alone may log
in.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import structlog

from api.server.limits import peer_of
from broker.errors import AccessRefused, BrokerError
from broker.tunnel_end import Streams, TunnelEnd
from broker.tunnel_login import OpeningLogin
from broker.tunnel_protocol import READ_BYTES, SUBPROTOCOL, is_tunnel

if TYPE_CHECKING:
    from api.accounts.guesses import Guesses

MOST_TUNNELS = 500  # of one process: two for each node
MOST_CHECKS = 8  # logins that the broker judges at the same time
IDLE_SECONDS = 60.0  # AMQP's heartbeats come more often
# For the broker, which reads nothing of a publishing connection while it has an alarm.
BUFFER_BYTES = 1 << 20
LONGEST_LOGIN = 1024  # bytes of a header

Scope = dict[str, Any]

log = structlog.get_logger("canopy.api")


class Refused(Exception):
    """The answer to a handshake: an HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Tunnels:
    """The ASGI application for `websocket` scopes."""

    def __init__(self, end: TunnelEnd, guesses: "Guesses") -> None:
        self._end = end
        self._guesses = guesses
        self._open = 0
        self._checks = asyncio.Semaphore(MOST_CHECKS)
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Ends all tunnels: this process stops, and nodes find another one."""
        self._ending.set()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """One tunnel, from its handshake to its end."""
        await receive()  # websocket.connect
        self._open += 1
        try:
            user, streams = await self._admit(scope)
        except Refused as refused:
            await _refuse(send, refused.status)
        else:
            log.info("tunnel opened", user=user, peer=scope["client"][0])
            await self._pass(streams, self._end.opening(user), receive, send)
            log.info("tunnel closed", user=user)
        finally:
            self._open -= 1

    async def _admit(self, scope: Scope) -> tuple[str, Streams]:
        """Raises Refused."""
        if not is_tunnel(scope["path"]) or SUBPROTOCOL not in scope["subprotocols"]:
            raise Refused(404)
        if self._open > MOST_TUNNELS:
            raise Refused(503)
        user, password = _login(scope["headers"])
        try:
            await self._check(peer_of(scope["client"][0]), user, password)
            return user, await self._end.connect(READ_BYTES)
        except BrokerError as error:
            log.warning("tunnel refused", user=user, reason=str(error))
            raise Refused(503) from error

    async def _check(self, peer: str, user: str, password: str) -> None:
        """Raises Refused, or BrokerError if the broker does not judge."""
        digest = hashlib.sha256(f"{user}:{password}".encode()).hexdigest()
        if self._guesses.seconds_left(peer, digest) > 0:
            raise Refused(429)
        async with self._checks:
            try:
                await self._end.check(user, password)
            except AccessRefused as error:
                self._guesses.wrong(peer, digest)
                log.warning("tunnel refused", user=user, peer=peer, reason=str(error))
                raise Refused(401) from error

    async def _pass(self, streams: Streams, opening: OpeningLogin, receive: Any, send: Any) -> None:
        """Passes bytes both ways until either side ends, or one says nothing for long."""
        reader, writer = streams
        tasks: list[asyncio.Task[Any]] = []
        try:
            await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL})
            tasks = [
                asyncio.create_task(_from_node(receive, writer, opening), name="tunnel from node"),
                asyncio.create_task(_from_broker(reader, send), name="tunnel from broker"),
                asyncio.create_task(self._ending.wait(), name="end of tunnels"),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.transport.abort()  # a broker that reads no more must not keep it open
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _login(headers: list[tuple[bytes, bytes]]) -> tuple[str, str]:
    """Raises Refused."""
    for name, value in headers:
        kind, _, encoded = value.partition(b" ")
        if name.lower() == b"authorization" and kind.lower() == b"basic":
            if len(encoded) > LONGEST_LOGIN:
                break
            with contextlib.suppress(binascii.Error, UnicodeDecodeError):
                user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
                if user.isprintable():  # it is logged
                    return user, password
    raise Refused(401)


async def _refuse(send: Any, status: int) -> None:
    start = {"type": "websocket.http.response.start", "status": status, "headers": []}
    await send(start)
    await send({"type": "websocket.http.response.body", "body": b""})


async def _from_node(receive: Any, writer: asyncio.StreamWriter, opening: OpeningLogin) -> None:
    writer.transport.set_write_buffer_limits(high=BUFFER_BYTES)
    try:
        while True:
            async with asyncio.timeout(IDLE_SECONDS):
                message = await receive()
            if message["type"] != "websocket.receive" or message.get("bytes") is None:
                return
            writer.write(opening.pass_on(message["bytes"]))
            await writer.drain()
    except AccessRefused as error:
        log.warning("tunnel ended", reason=str(error))
    except OSError:  # TimeoutError is one; the tunnel ends
        return


async def _from_broker(reader: asyncio.StreamReader, send: Any) -> None:
    with contextlib.suppress(OSError):
        while True:
            async with asyncio.timeout(IDLE_SECONDS):
                data = await reader.read(READ_BYTES)
            if not data:
                return
            await send({"type": "websocket.send", "bytes": data})
