"""What the broker keeps of a tree that has ended, and when it is deleted."""

import pytest

from broker.errors import Refusal
from broker.gone import remove_gone
from broker.memory import MemoryBroker
from topology import names

ROOT, CHILD, NEW = (names.node(name) for name in ("root", "n1", "n2"))


async def test_the_queues_and_exchanges_of_a_dead_tree_go() -> None:
    broker = await dead_tree()
    await remove_gone(broker.session(), ["n1", "root"])
    assert not {ROOT, CHILD} & broker.queues.keys()
    assert not {ROOT, CHILD} & broker.exchanges.keys()


async def test_an_exchange_to_which_a_node_is_bound_stays() -> None:
    broker = await dead_tree()
    session = broker.session()
    await session.declare_queue(NEW)
    await session.bind(NEW, ROOT, "n2")  # after the operator looked
    with pytest.raises(Refusal, match="a node has joined below root"):
        await remove_gone(session, ["n1", "root"])
    assert (ROOT, "n2", NEW) in broker.bindings


async def test_a_queue_with_a_job_stays_with_its_exchange() -> None:
    broker = await dead_tree()
    broker.put("", CHILD, b"a job", {})
    with pytest.raises(Refusal, match="n1 lives, or jobs wait in its queue"):
        await remove_gone(broker.session(), ["n1", "root"])
    assert {ROOT, CHILD} <= broker.exchanges.keys()


async def dead_tree() -> MemoryBroker:
    """A root and its child, without their processes."""
    broker = MemoryBroker()
    session = broker.session()
    for name in (ROOT, CHILD):
        await session.declare_exchange(name, "direct")
        await session.declare_queue(name)
    await session.bind(CHILD, ROOT, "n1")
    return broker
