"""A node's place in the tree: leaving, dying, moving and coming back, on the in-memory broker."""

import asyncio

import msgspec
import pytest
from structlog.testing import capture_logs

from broker.encoding import encode
from broker.errors import ConnectionLost
from broker.memory import MemorySession
from broker.wire import Adopt, Attach, Cancel, Finished, RemoveGone
from tests.unit.cluster import Cluster, read, until
from topology import names
from worker import life
from worker.node import Node


async def test_a_parent_that_is_missing_is_looked_for_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the broker's restart each level of the tree waits for the one above it."""
    monkeypatch.setattr(life, "RECONNECT_SECONDS", (0.001, 600.0))
    monkeypatch.setattr(life, "PARENT_SECONDS", 0.001)
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.kill("root")
        cluster.sessions["n1"].lose(ConnectionLost("cut"))
        tried = [cluster.sessions["n1"]]

        def often() -> bool:
            if cluster.sessions["n1"] is not tried[-1]:
                tried.append(cluster.sessions["n1"])
            return (
                len(tried) > 15
            )  # doubled each time, the pauses before would outlast the deadline of `until`

        await until(often)
        await cluster.add("root")
        await until(lambda: cluster.nodes["n1"].status == "idle")


async def test_a_leaving_node_hands_its_queue_and_its_children_to_its_parent() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.add("n2", "n1")
        for name in ("a", "b", "c"):
            await cluster.ask(name)
        await until(lambda: cluster.nodes["n2"].state().held == 1)
        cluster.engine("n1").finish(cluster.engine("n1").started[0])
        await cluster.end("n1")
        await until(lambda: cluster.nodes["n2"].parent == "root")
        await until(lambda: cluster.nodes["root"].dispatcher.child("n2"))
        assert names.node("n1") not in cluster.broker.queues
        assert names.node("n1") not in cluster.broker.exchanges
        await cluster.ask("d")
        await until(lambda: cluster.nodes["n2"].state().held == 2)


async def test_a_killed_node_loses_nothing() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.add("n2", "n1")
        streams = {name: await cluster.ask(name) for name in ("a", "b", "c")}
        await until(lambda: cluster.nodes["n2"].state().held == 1)
        running = cluster.engine("n2").started[0]
        cluster.engine("n2").say(running, "half")
        await until(lambda: streams[running].text == "half")
        await cluster.kill("n2")
        cluster.engine("n1").finish(cluster.engine("n1").started[0])
        for count in (2, 3):
            await until(lambda: len(cluster.engine("n1").started) == count)  # noqa: B023
            request_id = cluster.engine("n1").started[-1]
            if request_id == running:
                assert cluster.engine("n1").jobs[request_id].delivered == "half"
                cluster.engine("n1").say(request_id, " and ")
                cluster.engine("n1").say(request_id, "the rest")
            cluster.engine("n1").finish(request_id)
        text, frames = await read(streams.pop(running))
        assert text == "half and the rest"
        assert isinstance(frames[-1], Finished)
        for stream in streams.values():
            _, frames = await read(stream)
            assert isinstance(frames[-1], Finished)


async def test_a_dead_child_returns_to_its_place() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.kill("n1")
        await until(lambda: not cluster.nodes["root"].dispatcher.children)
        stream = await cluster.ask("a")
        await cluster.add("n1", "root")
        await until(lambda: cluster.where("a") == "n1")
        cluster.engine("n1").finish("a")
        _, frames = await read(stream)
        assert isinstance(frames[-1], Finished)


async def test_children_of_a_dead_inner_node_hang_below_its_parent_until_it_is_back() -> None:
    async with Cluster() as cluster:
        await cluster.article_tree()
        await until(lambda: cluster.nodes["n4"].membership._above == ("n1", "root"))
        await cluster.kill("n2")
        await until(
            lambda: (
                cluster.nodes["n1"].dispatcher.child("n4")
                and cluster.nodes["n1"].dispatcher.child("n5")
            )
        )
        streams = [await cluster.ask(f"j{number}") for number in range(4)]
        await until(lambda: all(cluster.where(f"j{number}") for number in range(4)))
        assert {cluster.where(f"j{number}") for number in range(4)} == {"n1", "n3", "n4", "n5"}
        await cluster.add("n2", "n1")
        await cluster.nodes["n4"].membership.go_home()
        await cluster.nodes["n5"].membership.go_home()
        await until(lambda: len(cluster.nodes["n2"].dispatcher.children) == 2)
        await until(
            lambda: (
                [child.name for child in cluster.nodes["n1"].dispatcher.children] == ["n2", "n3"]
            )
        )
        for stream in streams:
            name = cluster.where(stream.request_id)
            cluster.engine(str(name)).finish(stream.request_id)
            await read(stream)


async def test_when_parent_and_grandparent_die_together_the_root_takes_the_orphans() -> None:
    async with Cluster() as cluster:
        await cluster.article_tree()
        await until(lambda: cluster.nodes["n4"].membership._above == ("n1", "root"))
        await asyncio.gather(cluster.kill("n1"), cluster.kill("n2"))
        await until(lambda: cluster.nodes["root"].dispatcher.child("n4"))
        await until(lambda: cluster.nodes["root"].dispatcher.child("n3"))
        await cluster.ask("a")
        await until(lambda: cluster.where("a") in {"n3", "n4", "n5"})


async def test_attach_moves_a_subtree() -> None:
    async with Cluster() as cluster:
        await cluster.article_tree()
        assert await cluster.client.control("n3", Attach(parent="root"))
        await until(lambda: cluster.nodes["root"].dispatcher.child("n3"))
        await until(lambda: not cluster.nodes["n1"].dispatcher.child("n3"))
        assert [child.name for child in cluster.nodes["n3"].dispatcher.children] == ["n6", "n7"]
        edges = {(source, key) for source, key, _ in cluster.broker.bindings}
        assert (names.node("root"), "n3") in edges
        assert (names.node("n1"), "n3") not in edges


def reaches_root(cluster: Cluster, name: str) -> bool:
    for _ in range(5):
        name = cluster.nodes[name].parent or ""
        if name == "root":
            return True
    return False


async def test_a_node_that_dies_while_it_leaves_can_still_be_found() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.ask("a")
        await until(lambda: cluster.where("a") == "n1")
        await cluster.kill("root")
        leaving = asyncio.create_task(cluster.end("n1"))
        await until(lambda: not cluster.nodes["n1"].dispatcher.accepting)
        await cluster.kill("n1")
        await leaving
        assert cluster.broker.queues[names.node("n1")].ready
        assert (names.node("root"), "n1", names.node("n1")) in cluster.broker.bindings


async def test_children_that_died_while_their_parent_was_away_are_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.life.HEARTBEAT_SECONDS", 0.02)
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: cluster.where("a"))
        lost = cluster.sessions["root"]
        lost.lose(ConnectionLost("cut"))
        await cluster.kill("n1")
        await until(
            lambda: cluster.sessions["root"] is not lost and cluster.nodes["root"].status == "idle"
        )
        await cluster.add("n2", "root")
        await until(lambda: cluster.where("a") == "n2")
        cluster.engine("n2").finish("a")
        _, frames = await read(stream)
        assert isinstance(frames[-1], Finished)


async def test_a_node_whose_exchange_was_buried_with_its_former_life_gets_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.life.HEARTBEAT_SECONDS", 0.02)
    async with Cluster() as cluster:
        await cluster.article_tree()
        await until(lambda: cluster.nodes["n4"].membership._above == ("n1", "root"))
        await cluster.kill("n2")
        await until(
            lambda: (
                cluster.nodes["n1"].dispatcher.child("n4")
                and cluster.nodes["n1"].dispatcher.child("n5")
            )
        )
        sessions = dict(cluster.sessions)
        await cluster.add("n2", "n1")
        await cluster.sessions["n1"].delete_exchange(
            "canopy.node.n2"
        )  # decided before n2 had registered
        await until(lambda: len(cluster.nodes["n2"].dispatcher.children) == 2)
        assert all(
            cluster.sessions[name] is sessions[name] for name in ("n4", "n5")
        )  # nobody had to start over


async def test_an_orphan_passes_over_an_ancestor_that_cannot_take_it() -> None:
    async with Cluster() as cluster:
        await cluster.article_tree()
        await until(lambda: cluster.nodes["n4"].membership._above == ("n1", "root"))
        await cluster.sessions["n1"].delete_exchange("canopy.node.n1")
        await cluster.kill("n2")
        await until(lambda: cluster.nodes["root"].dispatcher.child("n4"))


async def test_a_node_adopts_a_dead_one_that_it_is_told_of() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        session = cluster.broker.session()
        await session.declare_queue(names.node("n9"))
        stream = await cluster.ask("a")
        await until(lambda: cluster.nodes["root"].state().held == 1)
        held = next(iter(cluster.nodes["root"].jobs.waiting)).job
        cluster.broker.put(
            "", names.node("n9"), encode(msgspec.structs.replace(held, request_id="b"))
        )
        assert await cluster.client.control("root", Adopt(node="n9"))
        await until(lambda: not cluster.broker.queues[names.node("n9")].ready)
        await until(lambda: stream.waiting == "no node is connected")


async def test_a_node_removes_what_an_ended_tree_left_and_nothing_that_lives() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        session = cluster.broker.session()
        for name in ("n9", "ended"):
            await session.declare_queue(names.node(name))
            await session.declare_exchange(names.node(name), "direct")
        assert await cluster.client.control("n1", RemoveGone(nodes=("n9", "ended")))
        await until(lambda: names.node("ended") not in cluster.broker.exchanges)
        assert not {names.node("n9"), names.node("ended")} & cluster.broker.queues.keys()
        await session.declare_queue(names.node("starts"))
        await session.declare_queue(names.inbox("starts"), exclusive=True)
        with capture_logs() as lines:
            assert await cluster.client.control("root", RemoveGone(nodes=("starts", "n1")))
            await until(lambda: lines)
        assert {names.node("starts"), names.node("n1")} <= cluster.broker.queues.keys()


@pytest.mark.parametrize("parent", ["n1", "n2", "n9"])
async def test_a_node_does_not_hang_below_itself_its_child_or_nobody(parent: str) -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.add("n2", "n1")
        assert await cluster.client.control("n1", Attach(parent=parent))
        await cluster.client.control("n1", Cancel(request_id="mark"))
        await until(lambda: cluster.nodes["n1"].jobs.unwanted.cancellations)
        assert cluster.nodes["n1"].parent == "root"


async def test_two_moves_that_make_a_ring_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.life.HEARTBEAT_SECONDS", 0.02)
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.add("n2", "root")
        await asyncio.gather(
            cluster.client.control("n1", Attach(parent="n2")),
            cluster.client.control("n2", Attach(parent="n1")),
        )
        await until(lambda: "root" in {cluster.nodes["n1"].parent, cluster.nodes["n2"].parent})
        await until(lambda: reaches_root(cluster, "n1") and reaches_root(cluster, "n2"))


async def test_a_standby_takes_over_the_name_and_the_line() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        streams = [await cluster.ask(f"r{number}") for number in range(3)]
        await until(lambda: cluster.nodes["root"].state().held == 3)
        standby = await cluster.stand_by("root")
        await cluster.kill("root")
        cluster.nodes["root"] = standby
        late = await cluster.ask("late")
        await until(lambda: standby.status == "idle")
        await cluster.add("n1", "root")
        for stream in (*streams, late):
            await until(lambda: cluster.where(stream.request_id))  # noqa: B023
            cluster.engine("n1").finish(stream.request_id)
            _, frames = await read(stream)
            assert isinstance(frames[-1], Finished)
        assert cluster.engine("n1").started == ["r0", "r1", "r2", "late"]


class OvertakenSession(MemorySession):
    """Another process takes the name right after the first answer that it is free."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster.broker)
        self._cluster = cluster
        self._one_question = asyncio.Lock()

    async def exists(self, queue: str) -> bool:
        async with self._one_question:
            taken = await super().exists(queue)
            if "root" not in self._cluster.nodes:
                await self._cluster.add("root")
            return taken


async def test_a_standby_that_is_overtaken_says_that_it_stands_by() -> None:
    """The launcher waits for that line: without it, `up` did not become ready for ten minutes."""
    async with Cluster() as cluster:

        async def connect() -> MemorySession:
            return OvertakenSession(cluster)

        standby = Node("root", None, "m", cluster.policy(), None)
        leave = asyncio.Event()
        with capture_logs() as lines:
            life_of_standby = asyncio.create_task(
                life.live(standby, connect, leave, wait=5.0, standby=True)
            )
            await until(lambda: any(line["event"] == "standby" for line in lines))
        leave.set()
        await life_of_standby
