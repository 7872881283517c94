"""Nodes and the API's client together, on the in-memory broker."""

import asyncio

import pytest

from broker.errors import ConnectionLost, NameTaken, NoParent, NoTree
from broker.stream import Stream
from broker.wire import (
    Attach,
    Drain,
    Failed,
    Finished,
    Job,
    Resume,
    ResumeRequest,
    Start,
    Waiting,
    encode,
)
from tests.unit.cluster import Cluster, HandEngine, read, until
from topology import names
from topology.dispatch import HoldHigh
from worker import life
from worker.engines.base import EngineUnavailable, PromptTooLong


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


@pytest.mark.parametrize("held", [False, True])
async def test_cancel_frees_the_slot(held: bool) -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        first = await cluster.ask("first")
        await until(lambda: cluster.where("first"))
        second = await cluster.ask("second")
        await until(lambda: cluster.nodes["n1"].state().held == 1)
        await (second if held else first).aclose()
        if held:
            await until(lambda: cluster.nodes["n1"].state().held == 0)
            assert cluster.where("first") == "n1"
        else:
            await until(lambda: cluster.where("second") == "n1")
            assert cluster.where("first") is None


async def test_cancel_overtakes_the_job() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        stream = await cluster.ask("a")
        await stream.aclose()
        await until(lambda: not cluster.nodes["root"].state().held)
        await cluster.add("n1", "root")
        assert cluster.engine("n1").started == []


async def test_the_deadline_ends_a_job_that_waits_and_one_that_runs() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        late = await cluster.ask("late", seconds_left=0.0)
        _, frames = await read(late)
        assert isinstance(frames[-1], Failed)
        assert frames[-1].code == "expired"
        slow = await cluster.ask("slow", seconds_left=0.05)
        _, frames = await read(slow)
        assert isinstance(frames[-1], Failed)
        assert frames[-1].code == "expired"
        await until(lambda: cluster.where("slow") is None)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PromptTooLong("5000 tokens, at most 4096"), "too_long"),
        (RuntimeError("bug"), "internal"),
    ],
)
async def test_a_failing_engine_fails_that_job_alone(error: Exception, code: str) -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root", slots=2)
        bad, good = await cluster.ask("bad"), await cluster.ask("good")
        await until(lambda: cluster.where("good"))
        cluster.engine("n1").steps["bad"].put_nowait(error)
        _, frames = await read(bad)
        assert isinstance(frames[-1], Failed)
        assert frames[-1].code == code
        cluster.engine("n1").finish("good")
        _, frames = await read(good)
        assert isinstance(frames[-1], Finished)


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


async def test_jobs_of_a_dead_api_process_are_dropped() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.ask("a")
        await cluster.ask("b")
        await until(lambda: cluster.nodes["n1"].state().held == 1)
        await cluster.client.stop()
        cluster.engine("n1").say("a", "anyone?")
        await until(lambda: cluster.where("a") is None)
        await until(lambda: not cluster.nodes["n1"].jobs.busy)
        assert cluster.engine("n1").started == ["a"]


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


class BrokenEngine(HandEngine):
    """Its model cannot be loaded."""

    async def start(self) -> None:
        raise EngineUnavailable("no such model")


async def test_a_node_whose_engine_cannot_start_leaves_no_registration() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        with pytest.raises(EngineUnavailable):
            await cluster.add("n1", "root", engine=BrokenEngine("m", 1))
        assert names.node("n1") not in cluster.broker.queues
        assert names.node("n1") not in cluster.broker.exchanges


class SlowEngine(HandEngine):
    """Its model is loaded when the test says so."""

    def __init__(self, model: str, slots: int) -> None:
        super().__init__(model, slots)
        self.loaded = asyncio.Event()

    async def start(self) -> None:
        await self.loaded.wait()


async def test_a_node_that_loads_is_seen_but_gets_nothing_and_can_be_told_to_leave() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        engine = SlowEngine("m", 1)
        adding = asyncio.create_task(cluster.add("n1", "root", engine=engine))
        await until(lambda: cluster.client.nodes().get("n1"))
        assert cluster.client.nodes()["n1"].status == "starting"
        await cluster.ask("a")
        await until(lambda: cluster.nodes["root"].state().held == 1)
        await cluster.end("n1")
        adding.cancel()
        assert names.node("n1") not in cluster.broker.queues
        assert engine.started == []


class MeasuringEngine(SlowEngine):
    """How many slots it has turns out when its model is loaded."""

    def __init__(self, *found: int) -> None:
        super().__init__("m", 8)
        self._found = iter(found)

    async def start(self) -> None:
        await super().start()
        self.slots = next(self._found)


async def test_a_node_has_the_slots_that_its_engine_has_found_out() -> None:
    async with Cluster(HoldHigh) as cluster:
        root = await cluster.add("root")
        told: list[int] = []
        hear = root.membership.on_capacity
        root.membership.on_capacity = lambda capacity: (
            told.append(capacity.slots),
            hear(capacity),
        )[1]  # type: ignore[method-assign]
        engine = MeasuringEngine(3)
        adding = asyncio.create_task(cluster.add("n1", "root", engine=engine))
        await until(lambda: cluster.client.nodes().get("n1"))
        streams = [await cluster.ask(f"j{number}") for number in range(5)]
        engine.loaded.set()
        node = await adding
        await until(lambda: len(engine.steps) == 3)
        await until(lambda: root.state().held == 2)
        assert set(told) - {0} == {3}  # nothing while it starts, and never the guess
        assert node.state().slots == 3
        assert node.state().status == "busy"
        await until(lambda: cluster.client.nodes()["n1"].slots == 3)
        for number, stream in enumerate(streams):
            await until(lambda: cluster.where(stream.request_id))  # noqa: B023
            engine.finish(f"j{number}")
            await read(stream)


async def test_fewer_slots_after_a_restart_take_none_from_those_that_have_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two jobs whose node died wait for their readers, in slots of another one, while its engine is started again."""
    async with Cluster(HoldHigh) as cluster:
        root = await cluster.add("root")
        await cluster.add("n0", "root", slots=2)
        streams = [await cluster.ask(name) for name in ("a", "b")]
        await until(lambda: cluster.where("b"))
        engine = MeasuringEngine(3, 1, 2)
        engine.loaded.set()
        node = await cluster.add("n1", "root", engine=engine)
        questions: list[tuple[Stream, ResumeRequest]] = []
        monkeypatch.setattr(cluster.client, "_grant", lambda *question: questions.append(question))
        await cluster.kill("n0")
        await until(lambda: len(questions) == 2)
        streams.append(await cluster.ask("c"))
        await until(lambda: cluster.where("c") == "n1")
        engine.fail("c")
        await until(lambda: node.dispatcher.slots == 1)
        assert node.dispatcher.running == 2
        assert node.dispatcher.subtree_free() == 0
        assert node.state().status == "busy"
        await until(lambda: [held.job.request_id for held in root.jobs.waiting] == ["c"])
        monkeypatch.undo()
        for question in questions:
            cluster.client._grant(*question)
        await until(lambda: set(engine.steps) == {"a", "b"})
        engine.finish("a")
        await until(lambda: "a" not in engine.steps)
        assert node.dispatcher.subtree_free() == 0  # one slot, and it is taken
        engine.finish("b")
        await until(lambda: cluster.where("c") == "n1")
        engine.fail("c")
        await until(lambda: node.dispatcher.slots == 2 and cluster.where("c") == "n1")
        engine.finish("c")
        for stream in streams:
            _, frames = await read(stream)
            assert isinstance(frames[-1], Finished)


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
