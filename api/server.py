"""The HTTP server around the ASGI application."""

import os
import resource
import signal
import sys
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from api import logs, stopping

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


def serve(host: str, port: int, processes: int) -> None:
    """Serves HTTP until SIGTERM or SIGINT, which end it within GRACE plus one second."""
    os.environ.setdefault("CANOPY_PORT", str(port))
    logs.configure()
    allow_many_connections()
    config = configuration("api.asgi:application", host, port, processes)
    if processes > 1:
        Multiprocess(config, sockets=[config.bind_socket()]).run()
    else:
        # uvicorn raises the signal that ended it once more; a stop that was asked for is no failure.
        for number in stopping.SIGNALS:
            signal.signal(number, lambda *_: sys.exit(0))
        uvicorn.Server(config).run()
