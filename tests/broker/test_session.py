"""RabbitMQ keeps the session's contract; and what only a real broker can show."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio

from broker.amqp import AmqpSession
from broker.session import AccessRefused, BrokerError, ConnectionLost, Session
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
    ("user", "queue"), [("api", fresh("node")), ("api", fresh("inbox")), ("node", fresh("reply")), ("node", "other")]
)
async def test_users_have_only_the_rights_they_need(broker: Broker, user: str, queue: str) -> None:
    session = await AmqpSession.open(broker.amqp[user], "test")
    with pytest.raises(AccessRefused):
        await session.declare_queue(queue)
    await session.close()


async def test_a_cut_connection_ends_the_session(broker: Broker) -> None:
    url = urlsplit(broker.amqp["node"])
    async with Proxy("127.0.0.1", url.port or 0) as proxy:
        session = await AmqpSession.open(broker.amqp["node"].replace(f":{url.port}", f":{proxy.port}"), "test")
        proxy.cut()
        async with asyncio.timeout(5):
            assert isinstance(await session.closed, BrokerError)
        with pytest.raises(ConnectionLost):
            await session.publish("", "anything", b"x")
        await session.close()
