"""The HTTP server around the ASGI application."""

import asyncio
import os
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

from api.server import logs
from api.server.limits import Connections, Limits, Network
from api.server.protocol import HttpProtocol
from api.server.socket_handover import Server

MANY = 65_536  # open files
OTHER_FILES = 128  # that are no connections of clients
GRACE = 3  # seconds that running requests get when the server stops
# Clients and proxies drop pooled connections after 60 s or less: before this server closes them.
KEEP_ALIVE_SECONDS = 75
BACKLOG = 4096  # connections that wait to be accepted


def configuration(
    application: Any, limits: Limits, proxies: tuple[Network, ...] = ()
) -> uvicorn.Config:
    """uvicorn's settings. `application`: an ASGI application, or where to import it from."""
    protocol: Any = partial(HttpProtocol, limits=limits, connections=Connections(limits, proxies))
    return uvicorn.Config(
        application,
        http=protocol,
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # only X-Forwarded-Proto matters here (see forwarded.py)
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE,
        backlog=BACKLOG,
    )


def allow_many_files() -> int:
    """Raises the soft limit of open files as far as it goes: a stream is a socket, and 1,024 are soon gone.

    Returns how many may be open then.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY if hard == resource.RLIM_INFINITY else min(MANY, hard)
    if soft == resource.RLIM_INFINITY:
        return MANY
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


def within_files(limits: Limits, files: int) -> Limits:
    """Fewer connections where not that many files may be open."""
    return replace(limits, connections=max(1, min(limits.connections, files - OTHER_FILES)))


def serve(host: str, port: int, fd: int | None = None) -> None:
    """Serves HTTP until SIGTERM or SIGINT, which end it within GRACE plus one second.

    SIGUSR1 ends it when open requests have ended. `fd`: a bound socket, used instead of `host` and
    `port`; other processes may accept from it, too.

    Raises OSError if the address cannot be used.
    """
    os.environ.setdefault("CANOPY_PORT", str(port))
    logs.configure()
    files = allow_many_files()
    from api.settings import ENV  # reads CANOPY_PORT

    listener = socket.socket(fileno=fd) if fd is not None else _bind(host, port)
    config = configuration(
        "api.server.asgi:application", within_files(ENV.limits, files), ENV.proxies
    )
    server = Server(config, listener, _ready if fd is not None else None)
    signal.signal(signal.SIGUSR1, server.finish)
    # uvicorn raises the signal that ended it once more; a stop that was asked for is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    server.run()


def _exit(*_signal: object) -> None:
    sys.exit(0)


def _bind(host: str, port: int) -> socket.socket:
    """Bound, not yet listening: connections are refused until the application can answer them."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


async def _ready() -> None:
    """Returns when /readyz would say so."""
    from api.health.endpoints import readyz  # the application has prepared Django by now

    while (await readyz(HttpRequest())).status_code != HTTPStatus.OK:  # noqa: ASYNC110 - there is no event for all of it
        await asyncio.sleep(0.1)
