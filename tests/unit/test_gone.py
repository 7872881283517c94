"""What the broker keeps of a tree that has ended, and when it is deleted."""

import msgspec
import pytest

from broker.encoding import decode, encode
from broker.errors import Refusal
from broker.gone import remove_gone
from broker.memory import MemoryBroker
from broker.session import Delivery
from broker.wire import Failed, Frames, Job
from tests.unit.cluster import until
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


async def test_what_a_node_that_lives_has_stays() -> None:
    broker = await dead_tree()
    session = broker.session()
    await session.declare_queue(names.inbox("n1"), exclusive=True)
    broker.put("", CHILD, b"a job", {})
    with pytest.raises(Refusal, match="n1 lives"):
        await remove_gone(broker.session(), ["n1", "root"])
    assert {ROOT, CHILD} <= broker.exchanges.keys()
    assert len(broker.queues[CHILD].ready) == 1


async def test_the_jobs_that_wait_end_and_their_readers_hear_why() -> None:
    broker = await dead_tree()
    session = broker.session()
    await session.declare_queue(names.DEAD_QUEUE)
    reply_to = names.reply("api")
    await session.declare_queue(reply_to, exclusive=True)
    heard: list[Delivery] = []
    await session.consume(reply_to, heard.append, prefetch=10)
    read = Job(request_id="r1", model="m", user="u", reply_to=reply_to, created=1.0, prompt="oak")
    unread = msgspec.structs.replace(read, request_id="r2", reply_to=names.reply("gone"))
    for queue, body in ((CHILD, encode(read)), (ROOT, encode(unread)), (ROOT, b"no job")):
        broker.put("", queue, body, {})
    await remove_gone(broker.session(), ["n1", "root"])
    assert not {ROOT, CHILD} & broker.queues.keys()
    await until(lambda: heard)
    [final] = decode(heard[0].body, Frames).frames
    assert isinstance(final, Failed)
    assert (final.request_id, final.code, final.retryable) == ("r1", "no_node", True)
    letters = [message.headers["reason"] for message in broker.queues[names.DEAD_QUEUE].ready]
    assert letters[0] == "the tree of model 'm' has ended"
    assert str(letters[1]).startswith("undecodable")
    assert len(letters) == 2


async def test_a_job_that_could_not_be_ended_stays_in_its_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = await dead_tree()
    job = Job(request_id="r1", model="m", user="u", reply_to="r", created=1.0, prompt="oak")
    broker.put("", CHILD, encode(job), {})
    session = broker.session()

    async def blocked(*args: object, **kwargs: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(session, "publish", blocked)
    with pytest.raises(Refusal, match="could not be taken"):
        await remove_gone(session, ["n1", "root"])
    assert len(broker.queues[CHILD].ready) == 1


async def dead_tree() -> MemoryBroker:
    """A root and its child, without their processes."""
    broker = MemoryBroker()
    session = broker.session()
    for name in (ROOT, CHILD):
        await session.declare_exchange(name, "direct")
        await session.declare_queue(name)
    await session.bind(CHILD, ROOT, "n1")
    return broker
