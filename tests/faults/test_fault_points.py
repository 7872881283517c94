"""Nodes that die between two steps which no signal from outside can hit."""

import pytest

from broker.wire import Drain
from tests.faults.conftest import Grow, Open
from tests.faults.nodes import Tree

JOBS = 40
KILLED = -9


@pytest.mark.parametrize(
    ("point", "victim", "where"),
    [
        ("forward-confirmed:5", "root", "root, between forward-confirm and ack"),
        ("forward-confirmed:5", "n2", "inner, between forward-confirm and ack"),
        ("final-confirmed:2", "n2", "inner, between the last frame's confirm and ack"),
        ("final-confirmed:2", "n4", "leaf, between the last frame's confirm and ack"),
    ],
)
async def test_killed_at_a_fault_point(
    point: str, victim: str, where: str, grow: Grow, account: Open
) -> None:
    tree: Tree = await grow(env={victim: {"CANOPY_FAULT_POINT": point}})
    ledger = account("kill -9", where)
    await ledger.submit(JOBS, tokens=30)
    assert await tree.died(victim) == KILLED
    await tree.restart(victim)
    assert await ledger.settled() == []
    await tree.whole()


async def test_killed_while_it_hands_its_jobs_up(grow: Grow, account: Open) -> None:
    """A draining leaf gives what it holds (with `paper`) to its parent, and dies meanwhile."""
    tree: Tree = await grow(
        policy="paper", env={"n4": {"CANOPY_FAULT_POINT": "forward-confirmed:2"}}
    )
    ledger = account("kill -9", "leaf that drains, between forward-confirm and ack")
    await ledger.submit(50, tokens=25)
    await ledger.until(lambda: sum(each.waiting == "n4" for each in ledger.answers) >= 3)
    await tree.tell("n4", Drain())
    assert await tree.died("n4") == KILLED
    await tree.restart("n4")
    assert await ledger.settled() == []
    await tree.whole()


async def test_killed_at_the_first_job_of_a_dead_childs_queue(grow: Grow, account: Open) -> None:
    tree: Tree = await grow(policy="paper", env={"n2": {"CANOPY_FAULT_POINT": "adopted:1"}})
    ledger = account("kill -9", "leaf, then its parent at the first job of its queue")
    await ledger.submit(50, tokens=25)
    await ledger.until(lambda: sum(each.waiting == "n4" for each in ledger.answers) >= 3)
    await tree.kill("n4")
    assert await tree.died("n2") == KILLED
    await tree.restart("n2", "n4")
    assert await ledger.settled() == []
    await tree.whole()
