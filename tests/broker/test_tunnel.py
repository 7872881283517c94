"""AMQP through a WebSocket of the pages' server, with a real broker behind it."""

import asyncio
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from broker.addresses import addresses
from broker.amqp import AmqpSession
from broker.errors import AccessRefused, BadCertificate, ConnectionLost
from broker.session import Delivery, JoinedNode
from broker.shared_objects import declare_shared, hear_joined
from broker.tunnel import Tunnel
from cli import certificate
from cli.rabbitmq import Broker
from tests.listening import forwarding, listening
from tests.realbroker import NodeProcess, root, stop
from tests.tunnel import PASSWORD, pages
from topology import names

SECONDS = 30.0


async def test_a_session_through_a_tunnel_carries_messages(broker: Broker) -> None:
    body = bytes(range(256)) * 40_000
    queue, answers = names.node("n1"), names.reply("test")
    async with asyncio.timeout(SECONDS), pages(broker) as url:
        near = await AmqpSession.open(broker.amqp["api"], "near")
        await declare_shared(near)
        node = await AmqpSession.open(broker.amqp["node"], "node")
        await node.declare_queue(queue)
        await near.declare_queue(answers, exclusive=True)
        await hear_joined(near, answers, answers)
        far = await AmqpSession.open(url, "far", joined=JoinedNode("n1", "echo"))
        arrived: asyncio.Queue[bytes] = asyncio.Queue()

        def take(delivery: Delivery) -> None:
            delivery.ack()
            arrived.put_nowait(delivery.body)

        await far.consume(queue, take, prefetch=1)
        await near.consume(answers, take, prefetch=1)
        assert await node.publish("", queue, body)
        assert await arrived.get() == body
        assert await far.publish("", answers, body)
        assert await arrived.get() == body
        await far.close()
        await node.delete_queue(queue)
        await node.close()
        await near.close()


async def test_the_broker_itself_judges_who_gets_a_tunnel(broker: Broker) -> None:
    async with asyncio.timeout(SECONDS), pages(broker) as url:
        with pytest.raises(AccessRefused):
            await AmqpSession.open(url.replace(PASSWORD, f"{PASSWORD}x"), "test")


async def test_users_who_work_beside_the_broker_get_none(broker: Broker) -> None:
    """Their passwords are right."""
    login = f"{names.joined_user('n1')}:{PASSWORD}"
    async with asyncio.timeout(SECONDS), pages(broker) as url:
        for who in ("node", "api", "admin"):
            other = urlsplit(broker.amqp[who]).netloc.rpartition("@")[0]
            with pytest.raises(AccessRefused):
                await AmqpSession.open(url.replace(login, other), "test")


async def test_another_user_does_not_log_in_on_a_nodes_tunnel(broker: Broker) -> None:
    async with asyncio.timeout(SECONDS), pages(broker) as url:
        (address,) = addresses(url)
        opened = await Tunnel.open(address)
        node = urlsplit(broker.amqp["node"]).netloc.rpartition("@")[0]
        with pytest.raises(AccessRefused):
            await AmqpSession.open(
                opened.url.replace(f"{names.joined_user('n1')}:{PASSWORD}", node), "test"
            )
        await opened.close()


async def test_without_its_broker_the_server_says_so(broker: Broker) -> None:
    away = Broker({**broker.amqp, "api": "amqp://api:x@127.0.0.1:1/"}, broker.management)
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
        async with listening(forwarding(parts.hostname, parts.port), context=context) as port:
            secure = f"https://{login}@127.0.0.1:{port}/?fingerprint="
            session = await AmqpSession.open(secure + made.fingerprint, "test")
            await session.close()
            with pytest.raises(BadCertificate, match="another certificate than the pinned one"):
                await AmqpSession.open(f"{secure}sha256:{bytes(32).hex()}", "test")
