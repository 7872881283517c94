"""Nodes and the API's client together, on the in-memory broker."""

import asyncio
import time

import pytest

from broker.encoding import encode
from broker.errors import ConnectionLost, NameTaken, NoParent, NoTree
from broker.wire import Drain, Finished, Job, Restart, Resume, Start, Stop, Waiting
from tests.unit.cluster import Cluster, read, until
from topology import names
from topology.dispatch import HoldHigh
from worker import life


async def test_an_answer_streams_back() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: cluster.where("a") == "n1")
        for word in ("one", " two"):
            cluster.engine("n1").say("a", word)
        cluster.engine("n1").finish("a")
        text, frames = await read(stream)
        assert text == "one two"
        assert isinstance(frames[0], Start)
        assert frames[-1] == Finished(
            request_id="a", seq=frames[-1].seq, reason="stop", prompt_tokens=1, completion_tokens=2
        )
        await until(
            lambda: not cluster.sessions["n1"].unsettled and not cluster.sessions["root"].unsettled
        )


async def test_article_example_on_real_nodes() -> None:
    async with Cluster() as cluster:
        await cluster.article_tree()
        order = []
        for number in range(7):
            await cluster.ask(f"j{number}")
            await until(lambda: cluster.where(f"j{number}"))  # noqa: B023
            order.append(cluster.where(f"j{number}"))
        assert order == ["n1", "n2", "n3", "n4", "n6", "n5", "n7"]
        assert cluster.nodes["root"].dispatcher.finished == 0


async def test_a_nodes_state_tells_its_engines_context_and_warning() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        engine = cluster.engine("n1")
        engine.context_length, engine.warning = 2048, "look at me"
        state = cluster.nodes["n1"].state()
        assert (state.context_length, state.warning) == (2048, "look at me")
        assert cluster.nodes["root"].state().context_length == 0


async def test_a_busy_leaf_holds_and_takes_what_is_queued_when_it_is_free() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root", slots=2)
        streams = [await cluster.ask(f"j{number}") for number in range(4)]
        await until(lambda: cluster.nodes["n1"].state().held == 2)
        waiting = await anext(streams[2])
        assert isinstance(waiting, Waiting)
        assert waiting.reason == "every slot is busy"
        arrivals = [pending.arrived_at for pending in cluster.nodes["n1"].jobs.waiting]
        expected = time.monotonic() - min(arrivals)
        assert cluster.nodes["n1"].state().oldest_wait == pytest.approx(expected, abs=0.1)
        for request_id in ("j0", "j1"):
            cluster.engine("n1").finish(request_id)
        await until(lambda: cluster.engine("n1").started == ["j0", "j1", "j2", "j3"])
        for request_id in ("j2", "j3"):
            cluster.engine("n1").finish(request_id)
        for stream in streams:
            _, frames = await read(stream)
            assert isinstance(frames[-1], Finished)


async def test_without_a_node_the_job_waits_and_its_reader_knows() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        stream = await cluster.ask("a")
        waiting = await anext(stream)
        assert isinstance(waiting, Waiting)
        assert waiting.reason == "no node is connected"
        await cluster.add("n1", "root")
        await until(lambda: cluster.where("a") == "n1")
        cluster.engine("n1").finish("a")
        _, frames = await read(stream)
        assert isinstance(frames[-1], Finished)


async def test_no_tree_for_the_model() -> None:
    async with Cluster() as cluster:
        with pytest.raises(NoTree):
            await cluster.ask()


async def test_names_are_unique_and_parents_must_exist() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        with pytest.raises(NameTaken, match="node already registered: n1"):
            await cluster.add("n1", "root")
        with pytest.raises(NoParent, match="no node named 'n9'"):
            await cluster.add("n2", "n9")
        assert names.node("n2") not in cluster.broker.queues


async def test_a_drained_node_gives_its_jobs_back_and_takes_them_again_when_resumed() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.ask("running")
        await until(lambda: cluster.where("running"))
        await cluster.ask("held")
        await until(lambda: cluster.nodes["n1"].state().held == 1)
        assert await cluster.client.control("n1", Drain())
        await until(lambda: cluster.nodes["root"].state().held == 1)
        assert cluster.nodes["n1"].state().status == "draining"
        cluster.engine("n1").finish("running")
        await until(lambda: cluster.nodes["n1"].state().status == "drained")
        assert await cluster.client.control("n1", Resume())
        await until(lambda: cluster.where("held") == "n1")


async def test_a_node_says_that_it_is_drained_before_its_next_heartbeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(life, "HEARTBEAT_SECONDS", 3600.0)
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        states = cluster.client.nodes
        await until(lambda: "n1" in states() and states()["n1"].status == "idle")
        assert await cluster.client.control("n1", Drain())
        await until(lambda: states()["n1"].status == "drained")


async def test_a_drained_node_hands_its_jobs_up_once_its_parent_is_back() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.ask("running")
        await until(lambda: cluster.where("running"))
        await cluster.ask("held")
        await until(lambda: cluster.nodes["n1"].state().held == 1)
        cluster.nodes["n1"].membership.parent_is_gone()
        cluster.nodes["n1"].on_control(Drain())
        cluster.nodes["n1"].announcer.send_all()
        await until(lambda: cluster.nodes["root"].state().held == 1)
        assert cluster.nodes["n1"].state().held == 0


async def test_a_lost_session_starts_the_back_off_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "RECONNECT_SECONDS", (0.001, 600.0))
    async with Cluster() as cluster:
        await cluster.add("root")
        for _ in range(
            15
        ):  # doubled each time, the last pause alone would outlast the deadline of `until`
            lost = cluster.sessions["root"]
            lost.lose(ConnectionLost("cut"))
            await until(lambda: cluster.sessions["root"] is not lost)  # noqa: B023
            await until(lambda: cluster.nodes["root"].status == "idle")


async def test_a_foreign_message_is_dead_lettered_with_the_reason() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        cluster.broker.put("", names.node("root"), b"not a job")
        await until(lambda: cluster.broker.queues[names.DEAD_QUEUE].ready)
        dead = cluster.broker.queues[names.DEAD_QUEUE].ready[0]
        assert dead.body == b"not a job"
        assert "undecodable" in str(dead.headers["reason"])
        misled = Job(
            request_id="a", model="m", reply_to=names.node("root"), created=0.0, prompt="p"
        )
        cluster.broker.put("", names.node("root"), encode(misled))
        await until(lambda: len(cluster.broker.queues[names.DEAD_QUEUE].ready) == 2)
        assert "no reply queue" in str(
            cluster.broker.queues[names.DEAD_QUEUE].ready[1].headers["reason"]
        )
        cluster.broker.put("", names.inbox("root"), b"\xff")
        await cluster.add("n1", "root")


async def test_a_node_whose_session_is_lost_registers_again() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: cluster.where("a"))
        lost = cluster.sessions["n1"]
        lost.lose(ConnectionLost("cut"))
        await until(lambda: cluster.sessions["n1"] is not lost and cluster.where("a") == "n1")
        cluster.engine("n1").say("a", "done")
        cluster.engine("n1").finish("a")
        text, _ = await read(stream)
        assert text == "done"


async def test_a_thousand_requests_get_each_its_own_answer() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        for number in range(4):
            await cluster.add(f"n{number}", "root", slots=250)
        streams = await asyncio.gather(*(cluster.ask(f"r{number}") for number in range(1000)))
        await until(
            lambda: sum(len(cluster.engine(f"n{number}").steps) for number in range(4)) == 1000
        )
        for stream in streams:
            engine = cluster.engine(str(cluster.where(stream.request_id)))
            engine.say(stream.request_id, f"for {stream.request_id}")
            engine.finish(stream.request_id)
        for stream, (text, _) in zip(
            streams, await asyncio.gather(*map(read, streams)), strict=True
        ):
            assert text == f"for {stream.request_id}"


async def test_hold_high_keeps_the_backlog_at_the_root_and_any_free_slot_takes_the_next() -> None:
    async with Cluster(HoldHigh) as cluster:
        await cluster.article_tree()
        await until(lambda: cluster.nodes["root"].dispatcher.subtree_free() == 7)
        for number in range(10):
            await cluster.ask(f"j{number}")
        await until(lambda: cluster.nodes["root"].state().held == 3)
        await until(lambda: all(cluster.where(f"j{number}") for number in range(7)))
        assert sum(node.state().held for node in cluster.nodes.values()) == 3
        for leaf in (
            "n6",
            "n1",
            "n4",
        ):  # a leaf, the top, another leaf: whoever is free takes the oldest
            before = set(cluster.engine(leaf).started)
            cluster.engine(leaf).finish(next(iter(cluster.engine(leaf).steps)))
            await until(lambda: set(cluster.engine(leaf).started) - before)  # noqa: B023
        assert cluster.nodes["root"].state().held == 0
        assert [cluster.engine(name).started[-1] for name in ("n6", "n1", "n4")] == [
            "j7",
            "j8",
            "j9",
        ]


async def test_a_removed_node_leaves_its_children_and_jobs_to_its_parent() -> None:
    async with Cluster(HoldHigh) as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.add("n2", "n1")
        stream = await cluster.ask("a")
        await until(lambda: cluster.where("a") == "n1")
        await cluster.client.control("n1", Stop())
        await until(lambda: cluster.nodes["n2"].parent == "root")
        cluster.engine("n1").finish("a")
        await read(stream)
        await cluster.ended("n1")
        assert cluster.nodes["n1"].departure.result() == "stop"
        assert "canopy.node.n1" not in cluster.broker.queues
        await cluster.add("n1", "root")  # another node of that name is not the children's home
        await cluster.nodes["n2"].membership.heartbeat()
        assert cluster.nodes["n2"].parent == "root"


async def test_a_restarted_node_gets_its_children_back() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.add("n2", "n1")
        await cluster.client.control("n1", Restart())
        await cluster.ended("n1")
        assert cluster.nodes["n1"].departure.result() == "restart"
        assert cluster.nodes["n2"].parent == "root"
        await cluster.add("n1", "root")
        await cluster.nodes["n2"].membership.heartbeat()
        await until(lambda: cluster.nodes["n2"].parent == "n1")
