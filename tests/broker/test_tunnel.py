"""AMQP through a WebSocket of the pages' server, with a real broker behind it."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from api.server.limits import Limits
from api.tunnel.endpoint import Tunnels
from broker.amqp import AmqpSession
from broker.errors import AccessRefused, BadCertificate, ConnectionLost
from broker.tunnel_end import TunnelEnd
from cli import certificate
from cli.rabbitmq import Broker
from tests.realbroker import NodeProcess, root, stop
from tests.unit.raw_http import serving

SECONDS = 30.0


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


async def test_a_session_through_a_tunnel_carries_messages(broker: Broker) -> None:
    async with asyncio.timeout(SECONDS), pages(broker) as url:
        session = await AmqpSession.open(url, "test")
        queue = "canopy.inbox.tunnelled"
        await session.declare_queue(queue, exclusive=True)
        arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        await session.consume(queue, lambda delivery: arrived.set_result(delivery.body), prefetch=1)
        body = bytes(range(256)) * 40_000
        assert await session.publish("", queue, body)
        assert await arrived == body
        await session.close()


async def test_the_broker_itself_judges_who_gets_a_tunnel(broker: Broker) -> None:
    async with asyncio.timeout(SECONDS), pages(broker) as url:
        with pytest.raises(AccessRefused):
            await AmqpSession.open(url.replace("node:", "node:x"), "test")


async def test_without_its_broker_the_server_says_so(broker: Broker) -> None:
    away = Broker({**broker.amqp, "api": "amqp://api:x@127.0.0.1:1/"}, {})
    async with asyncio.timeout(SECONDS), pages(away) as url:
        with pytest.raises(ConnectionLost, match="its broker is not reached"):
            await AmqpSession.open(url, "test")


async def test_a_lost_tunnel_ends_the_session(broker: Broker) -> None:
    async with asyncio.timeout(SECONDS):
        async with pages(broker) as url:
            session = await AmqpSession.open(url, "test")
        assert isinstance(await session.closed, ConnectionLost)
        await session.close()


async def test_a_node_joins_through_a_tunnel(broker: Broker) -> None:
    """Its process is awaited in threads: the web server is in this event loop."""
    options = ("--parent", "root", "--model", "echo", "--engine", "echo")
    with root(broker):
        async with asyncio.timeout(SECONDS), pages(broker) as url:
            node = NodeProcess(broker, "n1", *options, env={"CANOPY_AMQP_URL": url})
            try:
                await asyncio.to_thread(node.wait_ready)
            finally:
                await asyncio.to_thread(stop, node.process)


async def test_a_pinned_web_server_is_the_only_one(broker: Broker, tmp_path: Path) -> None:
    made = certificate.load_or_create(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.file, made.key)
    async with asyncio.timeout(SECONDS), pages(broker) as url:
        parts = urlsplit(url)
        login = parts.netloc.rpartition("@")[0]

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection(parts.hostname, parts.port)
            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

        async with await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            secure = f"https://{login}@127.0.0.1:{port}/?fingerprint="
            session = await AmqpSession.open(secure + made.fingerprint, "test")
            await session.close()
            with pytest.raises(BadCertificate, match="another certificate than the pinned one"):
                await AmqpSession.open(f"{secure}sha256:{bytes(32).hex()}", "test")


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until either end is closed."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
