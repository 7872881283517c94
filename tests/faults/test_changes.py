"""The tree is changed under load: not one request fails, and what makes no sense is refused."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from broker.wire import Attach, Drain, Resume
from tests.faults.conftest import Grow, Open
from tests.faults.ledger import Ledger
from tests.faults.nodes import Tree

AT_ONCE = 30  # on 28 slots
SERVED_MEANWHILE = 40  # answers that end before the next change


class Crowd:
    """Readers that submit again and again until they are stopped; each job is in the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._going = True
        self.tasks = [asyncio.create_task(self._ask()) for _ in range(AT_ONCE)]

    async def served(self) -> None:
        """Returns when many more have been answered."""
        wanted = self.ledger.ended() + SERVED_MEANWHILE
        await self.ledger.until(lambda: self.ledger.ended() >= wanted)

    async def stop(self) -> list[str]:
        """Waits for what is open; what is wrong, a line each. Raises what submitting raised."""
        self._going = False
        await asyncio.gather(*self.tasks)
        return await self.ledger.settled()

    async def _ask(self) -> None:
        while self._going:
            answer = await self.ledger.ask(tokens=10)
            await self.ledger.until(lambda answer=answer: answer.end is not None)


Gather = Callable[[str, str], Crowd]


@pytest_asyncio.fixture
async def crowd(account: Open) -> AsyncIterator[Gather]:
    """Opens an account and has many ask."""
    crowds: list[Crowd] = []

    def gather(fault: str, where: str) -> Crowd:
        crowds.append(Crowd(account(fault, where)))
        return crowds[-1]

    yield gather
    for task in [task for each in crowds for task in each.tasks]:
        task.cancel()


async def test_a_subtree_is_moved_under_load(grow: Grow, crowd: Gather) -> None:
    tree: Tree = await grow()
    load = crowd("attach", "a subtree, there and back, under load")
    await load.served()
    for parent in ("n2", "root", "n1"):
        tree.parents["n3"] = parent
        await tree.tell("n3", Attach(parent=parent))
        await tree.whole()
        await load.served()
    assert await load.stop() == []


@pytest.mark.parametrize(
    ("where", "name"), [("a leaf", "n4"), ("a subtree", "n2"), ("the whole tree", "n1")]
)
async def test_drain_and_resume_under_load(
    where: str, name: str, grow: Grow, crowd: Gather
) -> None:
    tree: Tree = await grow()
    load = crowd("drain, resume", f"{where}, under load")
    await load.served()
    await tree.tell(name, Drain())
    below = [name, *tree.descendants(name)]
    await tree.until(
        lambda nodes: all(nodes[each].running + nodes[each].held == 0 for each in below)
    )
    await tree.until(lambda nodes: nodes[name].status == "drained")
    if name != "n1":
        await load.served()
    await tree.tell(name, Resume())
    await tree.whole()
    await load.served()
    assert await load.stop() == []


async def test_a_senseless_attach_is_refused(grow: Grow, account: Open) -> None:
    """Straight into the inbox, past the checks of the command line and the dashboard."""
    tree: Tree = await grow()
    ledger = account("attach", "below itself, its child, nobody; a root: refused")
    for name, parent in (("n2", "n2"), ("n2", "n4"), ("n2", "n99"), ("root", "n1")):
        refused = tree.processes[name].said(f"parent={parent}")
        await tree.tell(name, Attach(parent=parent))
        assert await asyncio.to_thread(refused.wait, 10)
        assert all("refused" in line for line in tree.said(name, f"parent={parent}"))
        await ledger.submit(20, tokens=10)
    assert await ledger.settled() == []
    await tree.whole()


async def test_a_ring_is_undone(grow: Grow, account: Open) -> None:
    """A node only knows its children: it moves below its grandchild, and back."""
    tree: Tree = await grow()
    ledger = account("attach", "below its grandchild: undone")
    back = tree.processes["n1"].said("going back")
    await tree.tell("n1", Attach(parent="n7"))
    await ledger.submit(20, tokens=10)
    assert await asyncio.to_thread(back.wait, 10)
    assert await ledger.settled() == []
    await tree.whole()
