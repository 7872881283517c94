"""A tree has one model: nobody gets the answer of another one."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.encoding import decode, encode
from broker.wire import Attach, Capacity, Failed, Finished, Job
from tests.unit.cluster import Cluster, HandEngine, read, until
from topology import names
from topology.dispatch import HoldHigh
from worker.errors import WrongModel


async def test_a_node_of_another_model_is_refused_before_it_loads_anything() -> None:
    async with Cluster(HoldHigh) as cluster:
        root = await cluster.add("root")
        await cluster.add("n1", "root")
        engine = HandEngine("other", 1)
        with pytest.raises(
            WrongModel, match="root serves m; this node serves other: start it with --model m"
        ):
            await cluster.add("x", "root", engine=engine, model="other")
        assert engine.starts == 0
        assert root.dispatcher.child("x") is None
        assert "x: refused: it serves other" in root.state().warning
        assert names.node("x") not in cluster.broker.queues
        streams = [await cluster.ask(f"j{number}") for number in range(3)]
        for stream in streams:
            await until(lambda request=stream.request_id: cluster.where(request) == "n1")  # type: ignore[misc]
            cluster.engine("n1").finish(stream.request_id)
            assert isinstance((await read(stream))[1][-1], Finished)


async def test_a_node_that_is_moved_below_another_model_goes_back() -> None:
    async with Cluster(HoldHigh) as cluster:
        await cluster.add("root")
        node = await cluster.add("n1", "root")
        other = await cluster.add("root-other", model="other")
        assert await cluster.client.control("n1", Attach(parent="root-other"))
        await until(
            lambda: "root-other serves other" in node.state().warning and node.parent == "root"
        )
        await until(lambda: cluster.nodes["root"].dispatcher.child("n1"))
        assert other.dispatcher.child("n1") is None
        stream = await cluster.ask("a")
        await until(lambda: "a" in cluster.engine("n1").steps)
        cluster.engine("n1").finish("a")
        assert isinstance((await read(stream))[1][-1], Finished)


async def test_a_node_that_does_not_say_its_model_is_of_a_former_version() -> None:
    async with Cluster() as cluster:
        root = await cluster.add("root")
        root.on_control(Capacity(node="old", slots=1, free=1, received=0, finished=0))
        assert root.dispatcher.child("old") is not None


async def test_a_job_of_another_model_is_never_run() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        node = await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: "a" in cluster.engine("n1").steps)
        queue = next(name for name in cluster.broker.queues if name.startswith(names.REPLY_PREFIX))
        stray = msgspec.structs.replace(stream.job, model="other", reply_to=queue)
        for name in ("root", "n1"):
            cluster.broker.put("", names.node(name), encode(stray))
        _, frames = await read(stream)
        assert isinstance(frames[-1], Failed)
        assert "serves m, not other" in frames[-1].message
        await until(lambda: len(cluster.broker.queues[names.DEAD_QUEUE].ready) == 2)
        assert decode(cluster.broker.queues[names.DEAD_QUEUE].ready[0].body, Job).model == "other"
        assert node.dispatcher.finished == 1
        assert len(cluster.engine("n1").started) == 1


@given(st.lists(st.text(min_size=1), unique=True, min_size=1, max_size=30))
def test_different_models_have_different_roots(models: list[str]) -> None:
    roots = {names.root_name(model, models[0]) for model in models}
    assert len(roots) == len(models)
    assert all(names.is_node_name(root) for root in roots)


def test_a_root_has_the_readable_part_of_its_models_name() -> None:
    odd = ["a/b", "a-b", "A-B", "a b", "模型", "型模", "", "x" * 200, "x" * 201]
    roots = [names.root_name(model, "default") for model in odd]
    assert len(set(roots)) == len(odd)
    assert roots[1] == "root-a-b"
    assert roots[0].startswith("root-a-b_")
    assert all(names.is_node_name(root) for root in roots)
