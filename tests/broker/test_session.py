"""RabbitMQ keeps the session's contract; and what only a real broker can show."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio

from broker import amqp
from broker.amqp import AmqpSession
from broker.errors import AccessRefused, BrokerError, ConnectionLost
from broker.session import Session
from cli.ports import pick
from cli.rabbitmq import Broker
from tests.proxy import Proxy
from tests.session_contract import Open, SessionContract, fresh


class TestAmqpSession(SessionContract):
    @pytest_asyncio.fixture
    async def connect(self, broker: Broker) -> AsyncIterator[Open]:
        opened: list[Session] = []

        async def open_session() -> Session:
            opened.append(await AmqpSession.open(broker.amqp["node"], "test"))
            return opened[-1]

        yield open_session
        for session in opened:
            await session.close()


async def test_wrong_password_is_told_apart_from_an_absent_broker(broker: Broker) -> None:
    with pytest.raises(AccessRefused):
        await AmqpSession.open(broker.amqp["node"].replace("node:", "node:wrong"), "test")
    with pytest.raises(ConnectionLost):
        await AmqpSession.open(f"amqp://node:x@127.0.0.1:{pick(1)[0]}/%2F", "test")


async def test_guest_does_not_exist(broker: Broker) -> None:
    host = broker.amqp["node"].split("@")[1]
    with pytest.raises(AccessRefused):
        await AmqpSession.open(f"amqp://guest:guest@{host}", "test")
    async with httpx.AsyncClient(trust_env=False) as http:
        users = (await http.get(f"{broker.management['admin']}/api/users")).json()
    assert sorted(user["name"] for user in users) == ["admin", "api", "node"]


@pytest.mark.parametrize(
    ("user", "queue"),
    [("api", fresh("node")), ("api", fresh("inbox")), ("node", fresh("reply")), ("node", "other")],
    ids=["api-node", "api-inbox", "node-reply", "node-other"],
)
async def test_users_have_only_the_rights_they_need(broker: Broker, user: str, queue: str) -> None:
    session = await AmqpSession.open(broker.amqp[user], "test")
    with pytest.raises(AccessRefused):
        await session.declare_queue(queue)
    await session.close()


async def test_a_cut_connection_ends_the_session(broker: Broker) -> None:
    url = urlsplit(broker.amqp["node"])
    async with Proxy("127.0.0.1", url.port or 0) as proxy:
        session = await AmqpSession.open(
            broker.amqp["node"].replace(f":{url.port}", f":{proxy.port}"), "test"
        )
        proxy.cut()
        async with asyncio.timeout(30):
            assert isinstance(await session.closed, BrokerError)
        with pytest.raises(ConnectionLost):
            await session.publish("", "anything", b"x")
        await session.close()


async def test_a_refused_publish_ends_the_session(broker: Broker) -> None:
    """Unsettled messages are delivered again; losing half of them silently would be worse."""
    queue = fresh()
    policy = f"{broker.management['admin']}/api/policies/%2F/full"
    definition = {"max-length": 1, "overflow": "reject-publish"}
    session = await AmqpSession.open(broker.amqp["node"], "test")
    async with httpx.AsyncClient(trust_env=False) as http:
        body = {"pattern": f"^{queue}$", "definition": definition, "apply-to": "queues"}
        (await http.put(policy, json=body)).raise_for_status()
        await session.declare_queue(queue)
        assert await session.publish("", queue, b"x", persistent=True)
        with pytest.raises(BrokerError, match="could not take a message"):
            await session.publish("", queue, b"x", persistent=True)
        (await http.delete(policy)).raise_for_status()
    async with asyncio.timeout(30):
        assert "could not take a message" in str(await session.closed)
    await session.close()


async def test_of_several_addresses_one_that_answers_is_used(broker: Broker) -> None:
    dead = [f"amqp://node:x@127.0.0.1:{port}/%2F" for port in pick(2)]
    for _ in range(5):  # the order is random
        session = await AmqpSession.open(",".join([*dead, broker.amqp["node"]]), "test")
        assert not session.closed.done()
        await session.close()


async def test_an_address_that_does_not_answer_is_given_up(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp, "ADDRESS_SECONDS", 0.5)
    monkeypatch.setattr(amqp, "CONNECT_SECONDS", 1.0)
    port = urlsplit(broker.amqp["node"]).port or 0
    async with Proxy("127.0.0.1", port) as mute:
        mute.freeze()
        silent = broker.amqp["node"].replace(f":{port}", f":{mute.port}")
        with pytest.raises(ConnectionLost, match="does not answer"):
            await AmqpSession.open(silent, "test")
        session = await AmqpSession.open(f"{silent},{broker.amqp['node']}", "test")
        await session.close()
