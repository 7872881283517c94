"""The HTTP server around the ASGI application."""

import os
import socket
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from api import logs

GRACE = 3  # seconds that running requests get when the server stops


class Server(uvicorn.Server):
    """Ends endless streams first, so that open dashboards do not use up the grace period."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        self.config.loaded_app.handler.end_streams()
        await super().shutdown(sockets)


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


def serve(host: str, port: int, processes: int) -> None:
    """Serves HTTP until SIGTERM or SIGINT, which end it within GRACE plus one second."""
    os.environ.setdefault("CANOPY_PORT", str(port))
    logs.configure()
    config = configuration("api.asgi:application", host, port, processes)
    if processes > 1:
        Multiprocess(config, sockets=[config.bind_socket()]).run()
    else:
        Server(config).run()
