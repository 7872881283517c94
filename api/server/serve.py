"""The HTTP server around the ASGI application."""

import asyncio
import os
import resource
import signal
import socket
import sys
from http import HTTPStatus
from typing import Any

import uvicorn
from django.http import HttpRequest
from uvicorn.supervisors import Multiprocess

from api import logs
from api.server import signals
from api.server.handover import Server

MANY = 65_536  # open files
GRACE = 3  # seconds that running requests get when the server stops


def configuration(application: Any, host: str, port: int, processes: int = 1) -> uvicorn.Config:
    """uvicorn's settings. `application`: an ASGI application, or where to import it from."""
    return uvicorn.Config(
        application,
        host=host,
        port=port,
        workers=processes,
        http="httptools",
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # they wrap the application, and nothing here looks at the peer's address
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        backlog=4096,
    )


def allow_many_connections() -> None:
    """Raises the soft limit of open files as far as it goes: a stream is a socket, and 1,024 are soon gone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY if hard == resource.RLIM_INFINITY else min(MANY, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(host: str, port: int, processes: int, fd: int | None = None) -> None:
    """Serves HTTP until SIGTERM or SIGINT, which end it within GRACE plus one second.

    `fd`: a bound socket, used instead of `host` and `port`; SIGUSR1 then ends the process when what is open has ended.
    """
    os.environ.setdefault("CANOPY_PORT", str(port))
    logs.configure()
    allow_many_connections()
    config = configuration("api.asgi:application", host, port, processes)
    if fd is not None:
        _hand_over(config, socket.socket(fileno=fd))
    elif processes > 1:
        Multiprocess(config, sockets=[config.bind_socket()]).run()
    else:
        _run(uvicorn.Server(config))


def _run(server: uvicorn.Server) -> None:
    # uvicorn raises the signal that ended it once more; a stop that was asked for is no failure.
    for number in signals.SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    server.run()


def _hand_over(config: uvicorn.Config, listener: socket.socket) -> None:
    server = Server(config, listener, _ready)
    signal.signal(signal.SIGUSR1, server.finish)
    _run(server)


async def _ready() -> None:
    """Returns when /readyz would say so."""
    from api.health.endpoints import readyz  # the application has prepared Django by now

    while (await readyz(HttpRequest())).status_code != HTTPStatus.OK:  # noqa: ASYNC110 - there is no event for all of it
        await asyncio.sleep(0.1)
