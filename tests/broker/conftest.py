"""One real RabbitMQ for the whole tier."""

from collections.abc import Iterator

import pytest

from cli.rabbitmq import Broker
from tests.realbroker import private_broker


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with private_broker(tmp_path_factory.mktemp("canopy")) as running:
        yield running
