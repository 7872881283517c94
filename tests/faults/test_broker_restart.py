"""The broker ends in the middle of everything and starts again: no accepted job is lost."""

import asyncio
from collections.abc import Callable

import pytest

from tests.faults.conftest import Grow, Open
from tests.faults.nodes import Tree
from tests.realbroker import Server

JOBS = 200  # on 28 slots


@pytest.mark.parametrize(
    ("fault", "end"), [("broker restart (SIGTERM)", Server.stop), ("broker kill -9", Server.kill)]
)
async def test_the_broker_restarts(
    fault: str, end: Callable[[Server], None], server: Server, grow: Grow, account: Open
) -> None:
    tree: Tree = await grow(delay=0.02, policy="hold-high")
    ledger = account(fault, "200 jobs in flight")
    await ledger.submit(JOBS, tokens=60)
    await ledger.until(lambda: len(ledger.running()) == 28)
    ledger.strike(ledger.running())
    await asyncio.to_thread(end, server)
    assert ledger.ended() < JOBS - 28  # most had not begun
    server.launch()
    await asyncio.to_thread(server.wait_accepting)
    assert await ledger.settled(seconds=90) == []
    await tree.whole()
    ledger = account(fault, "after it")
    await ledger.submit(20, tokens=10)
    assert await ledger.settled() == []
