"""A server on a socket that outlives it: the next process accepts on the same socket before this one has finished.

It accepts connections once it can answer them, and says `ready` then. Asked to finish, it accepts no more, ends what
never ends by itself, serves what is open to its end, and exits. No connection is cut off: those that are in use are
told with their next answer that it was the last (`Connection: close`), idle ones are closed after some seconds.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
import uvicorn

from api.server import signals
from broker import heartbeat

READY_SECONDS = (
    5.0  # connections are accepted after so long even if something is missing: the answers say what
)
IDLE_SECONDS = 5.0  # of a server that finishes: idle connections are closed after that
# Several processes accept from one socket. One that took all that wait would leave the others idle.
_ACCEPTED_AT_ONCE = 8
_QUIET_TICKS = 5  # a tick is 0.1 s: what was accepted a moment ago has a request by then
_CLOSE = (b"connection", b"close")

log = structlog.get_logger("canopy.api")


class Server(uvicorn.Server):
    """See the module. `ready`: returns when requests can be answered; None: they can be at once."""

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        ready: Callable[[], Coroutine[Any, Any, None]] | None,
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._until_ready = ready or _at_once
        self._finish = False
        self._finishing_since: float | None = None
        self._quiet = 0  # ticks without work

    def finish(self, *_signal: object) -> None:
        """Serves what is open to its end, then exits. A signal handler."""
        self._finish = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the application, and listens when it is ready."""
        loop = asyncio.get_running_loop()
        self._heartbeat = loop.create_task(heartbeat.beat(), name="heartbeat")
        await super().startup(sockets=[])
        self._readiness = loop.create_task(self._until_ready(), name="readiness")
        began = loop.time()
        while not (
            self.should_exit or self._readiness.done() or loop.time() - began > READY_SECONDS
        ):
            await asyncio.wait([self._readiness], timeout=0.1)
        self.servers = [await self._listen()]
        self._readiness.add_done_callback(_announce)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends in order."""
        self._readiness.cancel()
        self._heartbeat.cancel()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        exits = await super().on_tick(counter)
        if not self._finish:
            return exits
        now = asyncio.get_running_loop().time()
        if self._finishing_since is None:
            self._finishing_since = now
            self._accept_no_more()
        signals.act()  # again and again: a page whose stream was ended asks for another on the same connection
        if now - self._finishing_since >= IDLE_SECONDS:
            self._close_idle()
        busy = self.server_state.connections or self.server_state.tasks
        self._quiet = 0 if busy else self._quiet + 1
        return exits or self._quiet >= _QUIET_TICKS

    async def _listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            self._connection, sock=self._listener, backlog=_ACCEPTED_AT_ONCE
        )
        # asyncio has one number for how many it accepts in a turn of the loop and how many the kernel lets wait.
        self._listener.listen(self.config.backlog)
        return server

    def _accept_no_more(self) -> None:
        for server in self.servers:
            server.close()
        self.config.encoded_headers.append(_CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]

    def _close_idle(self) -> None:
        connections: list[Any] = list(self.server_state.connections)
        for connection in connections:
            connection.close_if_idle()

    def _connection(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class
        made: asyncio.Protocol = protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


async def _at_once() -> None:
    """Nothing has to be waited for."""


def _announce(readiness: "asyncio.Task[None]") -> None:
    if not readiness.cancelled():
        readiness.result()
        log.info("ready")
