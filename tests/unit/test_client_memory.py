"""The API's broker client keeps nothing that grows with the number of past requests."""

import gc
from functools import partial

import pytest

from broker import broadcasts
from broker.errors import NoTree
from broker.stream import Stream
from broker.wire import Job
from tests.unit.cluster import Cluster, read, until


def streams() -> int:
    gc.collect()
    # `isinstance` reads __class__, which some of torch's objects answer with a warning
    return sum(type(candidate) is Stream for candidate in gc.get_objects())


async def test_a_request_that_ended_leaves_nothing() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        before = streams()
        for name in ("a", "b", "c"):
            stream = await cluster.ask(name)
            await until(partial(cluster.where, name))
            cluster.engine("n1").finish(name)
            await read(stream)
        del stream
        assert not cluster.client._streams
        await until(lambda: streams() == before)


async def test_cancels_are_remembered_until_they_may_be_said_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(broadcasts, "REPEAT_SECONDS", 0.0)
    async with Cluster() as cluster:
        await cluster.add("root")
        for name in ("a", "b", "c"):
            await (await cluster.ask(name)).aclose()
        assert [message.request_id for message in cluster.client._broadcasts._sent] == ["c"]


async def test_models_that_do_not_exist_are_forgotten() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        for number in range(3):
            job = Job(
                request_id="a", model=f"invented {number}", reply_to="", created=0.0, prompt="p"
            )
            with pytest.raises(NoTree):
                await cluster.client.submit(job)
        assert not cluster.client._streams
