"""Nodes die, freeze and come back: every job is answered once, with exactly its text."""

import asyncio
import time

import pytest

from tests.faults.conftest import Grow, Open
from tests.faults.nodes import Tree, disconnected

JOBS = 40  # on 28 slots: some wait
HEARTBEAT_SECONDS = 2.0  # how often a node repairs its place in the tree

pytestmark = pytest.mark.timeout(240)

VICTIMS = {"leaf": "n4", "inner": "n2", "root": "root"}


@pytest.mark.parametrize("where", VICTIMS)
async def test_killed_before_the_first_token(where: str, grow: Grow, account: Open) -> None:
    """No reader has a word yet: jobs run without text, or wait at the root or the leaves."""
    tree: Tree = await grow(delay=1.0, policy="hold-high" if where == "root" else "paper")
    ledger = account("kill -9", f"{where}, before the first token")
    victim = VICTIMS[where]
    await ledger.submit(JOBS, tokens=2)
    await ledger.until(ledger.placed)
    there = [each for each in ledger.answers if victim in (each.node, each.waiting)]
    assert there
    assert not any(each.pieces for each in there)
    await tree.kill(victim)
    await tree.restart(victim)
    assert await ledger.settled() == []
    await tree.whole()


@pytest.mark.parametrize("where", VICTIMS)
async def test_killed_in_mid_stream(where: str, grow: Grow, account: Open) -> None:
    tree: Tree = await grow()
    ledger = account("kill -9", f"{where}, in mid-stream")
    victim = VICTIMS[where]
    await ledger.submit(JOBS, tokens=150)
    await ledger.until(lambda: len(ledger.running()) == 28)
    ledger.strike(ledger.on(victim) if where != "root" else ledger.running())
    await tree.kill(victim)
    if where == "root":
        await tree.restart(victim)
        await ledger.submit(5, tokens=10)
    assert await ledger.settled() == []
    if where != "root":
        await tree.restart(victim)
    await tree.whole()


async def test_standby_roots_take_over_with_the_jobs_in_their_order(
    grow: Grow, account: Open
) -> None:
    tree: Tree = await grow(count=1, slots=1, policy="hold-high")
    ledger = account("kill -9", "root, a standby takes over, twice")
    standbys = [await tree.stand_by(), await tree.stand_by()]
    for _ in range(10):
        await ledger.ask(tokens=10)
    await ledger.until(lambda: ledger.placed() and len(ledger.running()) == 1)
    for _ in range(2):
        ledger.strike(ledger.running())
        await tree.kill("root")
        await ledger.ask(tokens=10)  # waits in the broker
        standbys.remove(await tree.succeeded(standbys))
    assert await ledger.settled() == []
    begun = sorted(ledger.answers, key=lambda each: each.heard[0])
    assert [each.number for each in begun] == [each.number for each in ledger.answers]
    await tree.whole()


async def test_frozen_for_longer_than_the_heartbeat(grow: Grow, account: Open) -> None:
    """A leaf of one tree and the root of another, at the same time, as heartbeats take a while."""
    await asyncio.gather(_frozen_leaf(grow, account), _frozen_root(grow, account))


async def _frozen_leaf(grow: Grow, account: Open) -> None:
    tree: Tree = await grow(count=3, delay=0.05)
    ledger = account("SIGSTOP", "leaf, longer than the heartbeat")
    await ledger.submit(12, tokens=60)
    await ledger.until(lambda: len(ledger.running()) == 12)
    tree.freeze("n3")
    ledger.strike(ledger.on("n3"))
    await disconnected(tree.broker, "n3")
    await ledger.until(lambda: not ledger.on("n3"))  # they go on elsewhere before it comes back
    tree.thaw("n3")
    assert await ledger.settled() == []
    await tree.whole()
    ledger = account("SIGSTOP", "leaf, once it is back")
    await ledger.submit(12, tokens=10)
    assert await ledger.settled() == []
    assert any("n3" in each.nodes for each in ledger.answers)


async def _frozen_root(grow: Grow, account: Open) -> None:
    tree: Tree = await grow(count=3, root="root-b", prefix="b", delay=0.05)
    ledger = account("SIGSTOP", "root, longer than the heartbeat", model="b")
    await ledger.submit(8, tokens=60)
    await ledger.until(lambda: len(ledger.running()) == 8)
    waiting = asyncio.create_task(
        ledger.submit(8, tokens=10)
    )  # wait in the broker until the root is back
    tree.freeze("root-b")
    ledger.strike(ledger.running())
    await disconnected(tree.broker, "root-b")
    tree.thaw("root-b")
    await waiting
    assert await ledger.settled() == []
    await tree.whole()


@pytest.mark.parametrize("healed_by", ["restart", "adoption", "legacy"])
async def test_the_drain_is_killed_in_the_middle(healed_by: str, grow: Grow, account: Open) -> None:
    """A leaf with many jobs in its queue dies, then its parent as it begins to empty that queue.

    They come back, or their nearest ancestor adopts the queue, or the parent leaves in order.
    """
    tree: Tree = await grow(
        slots=2, policy="paper"
    )  # with `hold-high` few jobs would lie in a leaf's queue
    ledger = account(
        "kill -9", f"leaf, then the parent that empties its queue; healed by {healed_by}"
    )
    tree.freeze("n4")  # so that jobs stay in its queue
    await ledger.submit(50, tokens=25)
    # jobs are everywhere then; on a slow machine the first have ended before the last begin
    await ledger.until(lambda: len(ledger.running()) + ledger.ended() >= 12)
    ledger.strike(ledger.on("n2"))
    heard = tree.processes["n2"].said("child is gone")
    await tree.kill("n4")
    await asyncio.to_thread(heard.wait, 30)
    if healed_by == "legacy":
        tree.processes["n2"].process.terminate()
        assert await tree.died("n2") == 0
    else:
        await tree.kill("n2")
    if healed_by == "restart":
        await tree.restart("n2", "n4")
    if healed_by == "adoption":
        await ledger.until(lambda: len(ledger.running()) < 5)
        await tree.adopt_orphans()
    assert await ledger.settled() == []


async def test_the_parent_dies_long_after_it_took_over(grow: Grow, account: Open) -> None:
    """It runs the dead leaf's jobs, which the broker still counts among the leaf's."""
    tree: Tree = await grow(count=2, delay=0.05)
    ledger = account("kill -9", "leaf, and two beats later the parent that runs its jobs")
    short = await ledger.submit(4, tokens=20)
    await ledger.until(lambda: len(ledger.on("n1")) == 4)
    await ledger.submit(4, tokens=140)
    await ledger.until(lambda: len(ledger.on("n2")) == 4 and all(each.end for each in short))
    await tree.kill("n2")
    await ledger.until(lambda: len(ledger.on("n1")) == 4)
    taken_over = time.time()
    await tree.until(lambda nodes: nodes["n1"].sent > taken_over + 2 * HEARTBEAT_SECONDS)
    ledger.strike(ledger.on("n1"))
    await tree.kill("n1")
    await tree.restart("n1", "n2")
    assert await ledger.settled() == []
    await tree.whole()


async def test_how_soon_the_streams_of_a_killed_leaf_go_on(grow: Grow, account: Open) -> None:
    """Leaf after leaf, with free slots elsewhere; the table shows the slowest and the p95."""
    tree: Tree = await grow(slots=12, delay=0.025)
    ledger = account("kill -9", "leaves one after the other, free slots elsewhere")
    for victim in ("n4", "n5", "n6", "n7"):
        done = ledger.ended()
        asked = await ledger.submit(60, tokens=80)
        await ledger.until(lambda asked=asked: all(each.pieces for each in asked))
        there = ledger.on(victim)
        assert there
        ledger.strike(there)
        await tree.kill(victim)
        await tree.restart(victim)
        await ledger.until(lambda done=done: ledger.ended() == done + 60)
        await tree.whole()
    assert await ledger.settled() == []
