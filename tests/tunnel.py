"""A web server with tunnels, before a real broker."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from api.server.limits import Limits
from api.tunnel.endpoint import Tunnels
from broker.tunnel_end import TunnelEnd
from cli.rabbitmq import Broker
from tests.unit.raw_http import serving


class NoGuesses:
    """Limits nothing."""

    def seconds_left(self, _address: str, _digest: str) -> float:
        return 0.0

    def wrong(self, _address: str, _digest: str) -> None:
        pass


@contextlib.asynccontextmanager
async def pages(broker: Broker) -> AsyncIterator[str]:
    """A web server with tunnels; the broker's address through it, for the user `node`."""
    tunnels: Any = Tunnels(TunnelEnd(broker.amqp["api"]), NoGuesses())  # type: ignore[arg-type]
    async with serving(tunnels, Limits(), tunnel=True) as site:
        host, port = site.address
        login = urlsplit(broker.amqp["node"]).netloc.rpartition("@")[0]
        yield f"http://{login}@{host}:{port}/"


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until either end is closed."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
