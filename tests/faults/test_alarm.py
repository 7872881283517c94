"""The broker lacks memory or disk: it says so at once, and running jobs end once it has room."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable

import psutil
import pytest
import pytest_asyncio

from broker.client import Client
from broker.errors import Unavailable
from tests.faults.conftest import Grow, Open
from tests.faults.ledger import Ledger
from tests.faults.nodes import Tree
from tests.realbroker import Server

# the promise is 2 s; the rest is for a machine that does much else
REFUSED_SECONDS = 2.0 + 2.5
GROWTH = 40_000_000  # bytes of a process while the broker takes nothing; unbounded: 100 MB
FLOOD_WORD = "w" * 200
FLOOD_WORDS = 60_000


class Alarm:
    """The broker's own limits, set so that it raises an alarm, or as they were."""

    def __init__(self, server: Server, kind: str) -> None:
        self.kind = kind
        self._server = server

    async def raised(self) -> None:
        await asyncio.to_thread(self._server.raise_alarm, self.kind)

    async def lifted(self) -> None:
        await asyncio.to_thread(self._server.lift_alarm, self.kind)


@pytest_asyncio.fixture
async def alarm(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Alarm]:
    """Lifted in the end, so that the next test has a broker."""
    alarm = Alarm(server, request.param)
    yield alarm
    await alarm.lifted()


async def refusal(ledger: Ledger) -> str:
    """What a reader is told who asks now; it must be told in time."""
    began = time.monotonic()
    with pytest.raises(Unavailable) as refused:
        await ledger.ask(tokens=5)
    assert time.monotonic() - began < REFUSED_SECONDS
    return str(refused.value)


async def until_taken(client: Client) -> None:
    """Returns when jobs are taken again."""
    async with asyncio.timeout(30):
        while not client.connected:
            await client.changed()


@pytest.mark.parametrize("alarm", ["memory", "disk"], indirect=True)
async def test_jobs_are_refused_in_time_and_those_that_run_end_after_it(
    alarm: Alarm, client: Client, grow: Grow, account: Open
) -> None:
    tree: Tree = await grow(delay=0.05)
    ledger = account(f"alarm: {alarm.kind}", "35 jobs in flight")
    await ledger.submit(35, tokens=160)  # 8 s each: none ends before the alarm
    await ledger.until(lambda: len(ledger.running()) == 28)
    await alarm.raised()
    assert ledger.ended() == 0
    for _ in range(3):
        assert "memory or disk" in await refusal(ledger)
    await alarm.lifted()
    ledger.strike(ledger.running())
    await until_taken(client)
    await ledger.submit(5, tokens=10)
    assert await ledger.settled() == []
    await tree.whole()


@pytest.mark.parametrize("alarm", ["memory"], indirect=True)
async def test_memory_is_bounded_while_the_broker_takes_nothing(
    alarm: Alarm, client: Client, grow: Grow, account: Open
) -> None:
    """A node that writes as fast as it can, 12 MB an answer; frozen until the alarm."""
    tree: Tree = await grow(count=1, slots=8, delay=0.0)
    ledger = account("alarm: memory", "8 answers of 12 MB")
    tree.freeze("n1")
    for _ in range(8):
        await ledger.ask(FLOOD_WORDS, FLOOD_WORD)
    await alarm.raised()
    watched = [
        psutil.Process(),
        *(psutil.Process(node.process.pid) for node in tree.processes.values()),
    ]
    before = resident(watched)
    tree.thaw("n1")
    await refusal(ledger)
    await asyncio.sleep(
        3.0
    )  # the fault itself: long enough to make all the text, if nothing held it back
    growth = [after - earlier for after, earlier in zip(resident(watched), before, strict=True)]
    assert max(growth) < GROWTH, growth
    assert ledger.ended() == 0
    await alarm.lifted()
    assert await ledger.settled() == []


def resident(processes: Iterable[psutil.Process]) -> list[int]:
    """Resident memory of each, in bytes."""
    return [process.memory_info().rss for process in processes]
