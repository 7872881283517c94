"""A server whose listening socket outlives it, for a graceful reload.

The next process accepts on the same socket before this one has finished. A server accepts
connections once it can answer them, and then logs `ready`. Told to finish (SIGUSR1), it accepts no
more, ends the endless streams, serves open requests to their end, and exits. Connections in use
learn with their next answer that it was the last (`Connection: close`); idle ones are closed after
IDLE_SECONDS.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
import uvicorn

from broker import heartbeat

# Connections are accepted after this time even if something is missing: the answers say what.
READY_SECONDS = 5.0
IDLE_SECONDS = 5.0  # after which a finishing server closes idle connections
END_STREAMS = "end_streams"  # key of the lifespan state: a function of the application
# Several processes accept from one socket: one that accepted all at once would starve the others.
_ACCEPTED_AT_ONCE = 8
_QUIET_TICKS = 5  # of 0.1 s: a connection that was just accepted has sent its request by then
_CLOSE = (b"connection", b"close")

log = structlog.get_logger("canopy.api")


class Server(uvicorn.Server):
    """See the module. `until_ready` returns when requests can be answered; None: at once."""

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        until_ready: Callable[[], Coroutine[Any, Any, None]] | None,
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._until_ready = until_ready or _at_once
        self._heartbeat: asyncio.Task[None] | None = None
        self._readiness: asyncio.Task[None] | None = None
        self._finish = False
        self._finishing_since: float | None = None
        self._quiet_ticks = 0

    def finish(self, *_signal: object) -> None:
        """Serves open requests to their end, then exits. A signal handler."""
        self._finish = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the application, and listens when it is ready."""
        loop = asyncio.get_running_loop()
        self._heartbeat = loop.create_task(heartbeat.send_heartbeats(), name="heartbeat")
        await super().startup(sockets=[])
        self._readiness = loop.create_task(self._until_ready(), name="readiness")
        deadline = loop.time() + READY_SECONDS
        while not self.should_exit and not self._readiness.done() and loop.time() <= deadline:
            await asyncio.wait([self._readiness], timeout=0.1)
        self.servers = [await self._listen()]
        self._readiness.add_done_callback(_announce)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends open requests within uvicorn's grace period; endless streams must not use it up."""
        for task in (self._readiness, self._heartbeat):
            if task is not None:
                task.cancel()
        self._end_streams()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        exits = await super().on_tick(counter)
        if not self._finish:
            return exits
        now = asyncio.get_running_loop().time()
        if self._finishing_since is None:
            self._finishing_since = now
            self._stop_accepting()
        # On every tick: a page whose stream ended asks for another on the same connection.
        self._end_streams()
        if now - self._finishing_since >= IDLE_SECONDS:
            self._close_idle()
        if self.server_state.connections or self.server_state.tasks:
            self._quiet_ticks = 0
        else:
            self._quiet_ticks += 1
        return exits or self._quiet_ticks >= _QUIET_TICKS

    def _end_streams(self) -> None:
        end_streams = self.lifespan.state.get(END_STREAMS)
        if end_streams is not None:
            end_streams()

    async def _listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            self._protocol, sock=self._listener, backlog=_ACCEPTED_AT_ONCE
        )
        # asyncio uses one number for connections accepted a turn and for the kernel's queue.
        self._listener.listen(self.config.backlog)
        return server

    def _stop_accepting(self) -> None:
        for server in self.servers:
            server.close()
        self.config.encoded_headers.append(_CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]

    def _close_idle(self) -> None:
        connections: list[Any] = list(self.server_state.connections)
        for connection in connections:
            connection.close_if_idle()

    def _protocol(self) -> asyncio.Protocol:
        create: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = create(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


async def _at_once() -> None:
    """Nothing to wait for."""


def _announce(readiness: "asyncio.Task[None]") -> None:
    if not readiness.cancelled():
        readiness.result()
        log.info("ready")
