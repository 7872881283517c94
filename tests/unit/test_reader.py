"""The reader's side: cancels, deadlines, lost connections, alarms; in-memory broker."""

import asyncio
from functools import partial

import msgspec
import pytest

from broker import broadcasts
from broker import client as broker_client
from broker.errors import ConnectionLost, NoTree, Unavailable
from broker.wire import (
    Cancel,
    Failed,
    Finished,
    Job,
    Waiting,
)
from tests.unit.cluster import Cluster, read, until


@pytest.mark.parametrize("waiting", [False, True])
async def test_cancel_frees_the_slot(waiting: bool) -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        first = await cluster.ask("first")
        await until(lambda: cluster.where("first"))
        second = await cluster.ask("second")
        await until(lambda: cluster.nodes["n1"].state().held == 1)
        await (second if waiting else first).aclose()
        if waiting:
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


def job(request_id: str = "a") -> Job:
    return Job(request_id=request_id, model="m", reply_to="q", created=0.0, prompt="p")


@pytest.mark.parametrize(("user", "ends"), [("ada", True), ("bob", False), ("", True)])
async def test_only_its_user_cancels_a_job(user: str, ends: bool) -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a", user="ada")
        await until(lambda: cluster.where("a"))
        cluster.client.cancel("a", user)
        await cluster.client.control("n1", Cancel(request_id="somebody else's"))
        if ends:
            _, frames = await read(stream)
            assert isinstance(frames[-1], Finished)
            assert frames[-1].reason == "cancelled"
            await until(lambda: cluster.where("a") is None)
        else:
            await until(lambda: cluster.nodes["n1"].jobs.unwanted.cancellations == 2)
            assert cluster.where("a") == "n1"


async def test_frames_that_nobody_reads_end_the_run_though_the_cancel_was_lost() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: cluster.where("a"))
        cluster.client._close(stream)  # as if the broker had lost what `aclose` publishes
        cluster.engine("n1").say("a", "anyone?")
        await until(lambda: cluster.where("a") is None)


async def test_a_job_whose_cancel_was_said_while_the_root_was_away_ends_when_it_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.reply_channel.ASK_SECONDS", 0.01)
    monkeypatch.setattr(broadcasts, "REPEAT_SECONDS", 0.02)
    async with Cluster() as cluster:
        await cluster.add("root")
        stream = await cluster.ask("a")
        await until(lambda: cluster.nodes["root"].state().held == 1)
        await cluster.kill("root")
        await stream.aclose()
        await cluster.add("root")
        await cluster.add("n1", "root")
        await until(lambda: cluster.nodes["n1"].dispatcher.finished == 1)
        await until(lambda: not cluster.sessions["n1"].unsettled)
        assert cluster.engine("n1").started == []


async def test_a_stream_outlives_the_connection_of_its_reader() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream, waiting = await cluster.ask("a"), await cluster.ask("b")
        await until(lambda: cluster.where("a") == "n1")
        cluster.engine("n1").say("a", "half")
        await until(lambda: stream.text == "half")
        cluster.client_session.lose(ConnectionLost("cut"))
        await until(lambda: cluster.engine("n1").jobs["a"].attempt == 2 and cluster.where("a"))
        assert cluster.engine("n1").jobs["a"].delivered == "half"
        cluster.engine("n1").say("a", " and half")
        cluster.engine("n1").finish("a")
        text, frames = await read(stream)
        assert text == "half and half"
        assert any(isinstance(frame, Waiting) and "connection" in frame.reason for frame in frames)
        await until(lambda: cluster.where("b"))
        cluster.engine("n1").finish("b")
        _, frames = await read(waiting)
        assert isinstance(frames[-1], Finished)
        assert stream.faults == waiting.faults == ()
        await until(
            lambda: not cluster.sessions["n1"].unsettled and not cluster.sessions["root"].unsettled
        )


async def test_a_stream_does_not_wait_for_a_broker_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(broker_client, "PATIENCE_SECONDS", 0.0)
    async with Cluster() as cluster:
        await cluster.add("root")
        stream = await cluster.ask("a")

        async def refused() -> None:
            raise ConnectionLost("refused")

        cluster.client._connect = refused  # type: ignore[assignment]
        cluster.client_session.lose(ConnectionLost("gone"))
        _, frames = await read(stream)
        assert isinstance(frames[-1], Failed)
        assert frames[-1].retryable


async def test_during_an_alarm_a_job_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        session = cluster.client_session
        session.alarm(True)
        with pytest.raises(Unavailable, match="memory or disk"):
            await cluster.ask("a")
        session.alarm(False)
        monkeypatch.setattr(
            session, "publish", lambda *_, **__: asyncio.get_running_loop().create_future()
        )
        asking = asyncio.create_task(
            cluster.ask("b")
        )  # the alarm comes while the broker has not confirmed
        await until(lambda: cluster.client.stream("b"))
        session.alarm(True)
        with pytest.raises(Unavailable, match="memory or disk"):
            await asking
        assert cluster.client.stream("b") is None


async def test_during_an_alarm_a_run_waits_with_its_text() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: stream.started)
        cluster.sessions["n1"].alarm(True)
        cluster.engine("n1").say("a", "late")
        cluster.engine("n1").say("a", "r")
        await until(lambda: cluster.engine("n1").steps["a"].qsize() == 1)
        assert stream.text == ""
        cluster.sessions["n1"].alarm(False)
        await until(lambda: stream.text == "later")


async def test_the_beginning_of_the_first_run_is_told_once() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        streams = [await cluster.ask() for _ in range(3)]
        begun: list[str] = []
        for stream in streams:
            stream.when_begun(partial(begun.append, stream.request_id))
        assert begun == []
        await cluster.add("n1", "root")
        await until(lambda: len(begun) == 1)
        for stream in streams:
            await stream.aclose()  # the others will never begin
        assert sorted(begun) == sorted(each.request_id for each in streams)


async def test_a_model_that_no_routing_key_can_name_has_no_tree() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n0", "root")
        for model in ("模" * 90, "\ud800"):
            with pytest.raises(NoTree):
                await cluster.client.submit(msgspec.structs.replace(job(), model=model))
        stream = await cluster.ask("a")
        await until(lambda: "a" in cluster.engine("n0").steps)
        cluster.engine("n0").finish("a")
        await read(stream)
