"""The HTTP server around the ASGI application."""

import asyncio
import resource
import signal
import socket
import sys
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

import uvicorn
from django.http import HttpRequest

from api import environment
from api.server import logs
from api.server.limits import Connections, Limits, Network
from api.server.protocol import HttpProtocol, TunnelProtocol
from api.server.socket_handover import Server
from broker.tunnel_protocol import LARGEST_MESSAGE, PING_SECONDS, PONG_SECONDS

OPEN_FILES = 65_536
OTHER_FILES = 128  # open files that are not client connections
GRACE = 3  # seconds that running requests get when the server stops
# Longer than clients and proxies keep pooled connections (60 s or less): they close first.
KEEP_ALIVE_SECONDS = 75
ACCEPT_BACKLOG = 4096  # connections that wait to be accepted


def configuration(
    application: Any, limits: Limits, proxies: tuple[Network, ...] = (), *, tunnel: bool = False
) -> uvicorn.Config:
    """uvicorn's settings. `application`: an ASGI application, or its import string; `tunnel`:
    whether it takes tunnels (api/tunnel).
    """
    protocol: Any = partial(HttpProtocol, limits=limits, connections=Connections(limits, proxies))
    return uvicorn.Config(
        application,
        http=protocol,
        ws=TunnelProtocol if tunnel else "none",
        ws_max_size=LARGEST_MESSAGE,
        ws_per_message_deflate=False,  # text is a small part of what a tunnel carries
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PONG_SECONDS,
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # edge.py reads X-Forwarded-Proto, and no other is needed
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE,
        backlog=ACCEPT_BACKLOG,
    )


def allow_many_files() -> int:
    """Raises the soft limit of open files: every stream is a socket. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return OPEN_FILES
    limit = OPEN_FILES
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    if soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(soft, limit)


def within_files(limits: Limits, files: int) -> Limits:
    """The limits with no more connections than files may be open."""
    return replace(limits, connections=max(1, min(limits.connections, files - OTHER_FILES)))


def serve(host: str, port: int, fd: int | None = None) -> None:
    """Serves HTTP until SIGTERM or SIGINT, which end it within GRACE plus one second.

    SIGUSR1 ends it after its open requests. `fd`: a bound socket, used instead of `host` and
    `port`; other processes may accept from it, too. Raises OSError if the address cannot be used.
    """
    environment.use_settings(port)
    logs.configure(*environment.log_settings())
    files = allow_many_files()
    from api.settings import ENV  # reads CANOPY_PORT

    listener = socket.socket(fileno=fd) if fd is not None else _bind(host, port)
    config = configuration(
        "api.server.asgi:application",
        within_files(ENV.limits, files),
        ENV.proxies,
        tunnel=ENV.tunnel,
    )
    server = Server(config, listener, _until_ready if fd is not None else None)
    signal.signal(signal.SIGUSR1, server.finish)
    # uvicorn raises the signal that ended it again: that must exit with status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    server.run()


def _exit(*_signal: object) -> None:
    sys.exit(0)


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket. Not listening yet: connections are refused until they can be answered."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


async def _until_ready() -> None:
    """Returns when /readyz answers 200."""
    from api.health.endpoints import readyz  # the application has set Django up by now

    while True:
        response = await readyz(HttpRequest())
        if response.status_code == HTTPStatus.OK:
            return
        await asyncio.sleep(0.1)
