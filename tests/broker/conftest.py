"""One real RabbitMQ for the whole tier."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from broker.client import Client
from cli.rabbitmq import Broker
from tests.realbroker import private_broker

CONNECT_SECONDS = 30.0


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with private_broker(tmp_path_factory.mktemp("canopy")) as running:
        yield running


@pytest_asyncio.fixture
async def client(broker: Broker) -> AsyncIterator[Client]:
    """The reader, connected as an API process is."""
    client = Client(broker.amqp["api"])
    await client.start()
    async with asyncio.timeout(CONNECT_SECONDS):
        while not client.connected:
            await client.changed()
    yield client
    await client.stop()
