"""A web server with tunnels, before a real broker."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from api.server.limits import Limits
from api.tunnel.endpoint import Tunnels
from broker import joined_users
from broker.management import ManagementApi
from broker.tunnel_end import TunnelEnd
from cli.rabbitmq import Broker
from tests.unit.raw_http import serving
from topology import names

PASSWORD = "of-a-tunnel"
MODEL = "echo"


class NoGuesses:
    """Limits nothing."""

    def seconds_left(self, _address: str, _digest: str) -> float:
        return 0.0

    def wrong(self, _address: str, _digest: str) -> None:
        pass


@contextlib.asynccontextmanager
async def pages(broker: Broker, node: str = "n1") -> AsyncIterator[str]:
    """A web server with tunnels; the broker's address through it, with a token of that node."""
    api = ManagementApi(broker.management["admin"])
    await joined_users.create(api, node, MODEL, PASSWORD, "/")
    tunnels: Any = Tunnels(TunnelEnd(broker.amqp["api"]), NoGuesses())  # type: ignore[arg-type]
    try:
        async with serving(tunnels, Limits(), tunnel=True) as site:
            host, port = site.address
            yield f"http://{names.joined_user(node)}:{PASSWORD}@{host}:{port}/"
    finally:
        await joined_users.delete(api, node)
