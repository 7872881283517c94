"""One real RabbitMQ for the whole tier, a fresh tree for each test, and the table at the end."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import pytest
import pytest_asyncio

from broker.client import Client
from cli.rabbitmq import Broker
from tests.faults import hostile
from tests.faults.hostile import HostileRow
from tests.faults.ledger import Ledger
from tests.faults.nodes import Tree, clear
from tests.faults.table import Row, render, write
from tests.realbroker import Server, private_server

CONNECT_SECONDS = 30.0
ROW = "fault"  # names of the reports' properties, which also come from other processes
HOSTILE_ROW = "hostile request"

Kind = TypeVar("Kind")
Grow = Callable[..., Awaitable[Tree]]
Join = Callable[[str], Awaitable[Client]]


class Open(Protocol):
    """Opens the account of a fault."""

    def __call__(
        self, fault: str, where: str, *, model: str = "echo", client: Client | None = None
    ) -> Ledger: ...


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the tables; writes the first as JSON too if CANOPY_FAULT_TABLE names a file."""
    beside = recorded(terminalreporter, HOSTILE_ROW, HostileRow)
    if beside:
        terminalreporter.section("innocent requests beside a fault")
        terminalreporter.write_line(hostile.render(beside))
    rows = recorded(terminalreporter, ROW, Row)
    if not rows:
        return
    terminalreporter.section("fault matrix")
    terminalreporter.write_line(render(rows))
    if file := os.environ.get("CANOPY_FAULT_TABLE"):
        write(rows, Path(file))


def recorded(terminalreporter: Any, name: str, kind: type[Kind]) -> list[Kind]:
    """The rows of that name, in the order in which their tests ended."""
    rows: list[Kind] = []
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "teardown":  # it has those of set-up and test, too
                values = [value for key, value in report.user_properties if key == name]
                rows += [msgspec.convert(value, kind) for value in values]
    return rows


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The broker as something that can be stopped and started again."""
    with private_server(tmp_path_factory.mktemp("canopy")) as running:
        yield running


@pytest.fixture
def broker(server: Server) -> Broker:
    """The broker's address."""
    return server.address


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Adds a row to the table."""
    properties = request.node.user_properties
    return lambda row: properties.append((ROW, msgspec.to_builtins(row)))


@pytest.fixture
def record_hostile(request: pytest.FixtureRequest) -> Callable[[HostileRow], None]:
    """Adds a row to the table of innocent requests."""
    properties = request.node.user_properties
    return lambda row: properties.append((HOSTILE_ROW, msgspec.to_builtins(row)))


@pytest_asyncio.fixture
async def join() -> AsyncIterator[Join]:
    """Makes connected clients, as in an API process; the argument is the broker's address."""
    clients: list[Client] = []

    async def join(amqp_url: str) -> Client:
        client = Client(amqp_url)
        clients.append(client)
        await client.start()
        async with asyncio.timeout(CONNECT_SECONDS):
            while not client.connected:
                await client.changed()
        return client

    yield join
    for client in clients:
        await client.stop()


@pytest_asyncio.fixture
async def client(broker: Broker, join: Join) -> Client:
    """The reader."""
    return await join(broker.amqp["api"])


@pytest_asyncio.fixture
async def grow(broker: Broker, client: Client) -> AsyncIterator[Grow]:
    """Trees of node processes, with `Tree`'s options; nothing of them is left behind."""
    async with AsyncExitStack() as stack:

        async def grow(**options: Any) -> Tree:
            return await stack.enter_async_context(Tree(broker, client, **options))

        yield grow
    await clear(broker)


@pytest_asyncio.fixture
async def account(client: Client, record: Callable[[Row], None]) -> AsyncIterator[Open]:
    """Ledgers; each becomes a row of the table, whether its test passes or not."""
    ledgers: list[Ledger] = []

    def open_account(
        fault: str, where: str, *, model: str = "echo", client: Client = client
    ) -> Ledger:
        ledgers.append(Ledger(client, fault, where, model=model))
        return ledgers[-1]

    yield open_account
    for ledger in ledgers:
        await ledger.close()
        record(ledger.row())
