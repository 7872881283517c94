"""What a drill counts: pure tallies, and API processes that count their own requests."""

import asyncio

import pytest

from broker.client import Client
from broker.drill_messages import DrillCounts
from broker.drill_tally import LATE_SECONDS, Counts, DrillTally
from broker.errors import Unavailable
from broker.wire import NO_RUN, Failed, Finished, Job
from tests.unit.cluster import Cluster, until

DONE = Finished(request_id="a", seq=4, reason="stop")
BROKEN = Failed(request_id="a", seq=NO_RUN, code="expired", message="late")


def killed(*running: str, waiting: tuple[str, ...] = ()) -> DrillTally:
    """n1 dies at 10 s; these jobs run there, for all that is known."""
    tally = DrillTally("d1", "n1")
    for request_id in running:
        tally.on_run(request_id, "n1", 1.0)
    tally.kill(10.0, [], waiting)
    return tally


def test_a_job_moves_and_its_recovery_is_the_time_to_its_next_token() -> None:
    tally = killed("a", "b")
    assert (tally.counts().affected, tally.counts().open) == (2, 2)
    for request_id, node, at in (("a", "n2", 11.5), ("b", "n1", 12.0)):
        tally.on_resume(request_id, died=True)
        tally.on_text(request_id, 10.7)  # nothing of the new run yet
        tally.on_run(request_id, node, 11.0)
        tally.on_text(request_id, at)
        tally.on_text(request_id, at + 5)
    counts = tally.counts()
    assert (counts.moved, counts.returned, counts.open) == (1, 1, 0)
    assert counts.slowest == pytest.approx(2.0)


def test_before_the_kill_nothing_is_affected() -> None:
    tally = DrillTally("d1", "n1")
    for request_id in ("ended", "left", "interrupted", "moved", "stays"):
        tally.on_run(request_id, "n1", 1.0)
    tally.on_closed("ended", DONE, 2.0)
    tally.on_closed("left", None, 2.0)
    tally.on_interrupted("interrupted")
    tally.on_run("moved", "n2", 2.0)
    assert tally.counts().affected == 0
    tally.kill(10.0, [], [])
    assert tally.counts().affected == 1


def test_a_run_that_had_said_its_end_was_not_affected() -> None:
    tally = killed("a", "b")
    tally.on_closed("a", DONE, 10.1)
    tally.on_closed("b", Failed(request_id="b", seq=3, code="engine", message="oom"), 10.1)
    assert tally.counts().affected == 0


def test_an_error_loses_a_job_and_a_reader_may_leave() -> None:
    tally = killed("a", "b", "c", "d")
    tally.on_closed("a", BROKEN, 20.0)
    tally.on_closed("b", None, 20.0)
    tally.on_resume("c", died=True)
    tally.on_run("c", "n2", 11.0)
    tally.on_closed("c", Failed(request_id="c", seq=2, code="engine", message="oom"), 12.0)
    tally.on_resume("d", died=True)
    tally.on_run("d", "n2", 11.0)
    tally.on_closed("d", DONE, 13.0)  # it had no token left to make
    counts = tally.counts()
    assert (counts.affected, counts.lost, counts.left, counts.moved) == (4, 2, 1, 1)


def test_prompts_that_were_read_count_too() -> None:
    """The node names the job, and its reader never hears of that run."""
    tally = DrillTally("d1", "n1")
    tally.kill(10.0, ["a", "b"], [])
    assert tally.counts().open == 2
    tally.on_resume("a", died=False)
    tally.on_run("a", "n2", 11.0)
    tally.on_text("a", 11.2)
    tally.on_run("b", "n3", 10.2)  # the node's list was old: it ran elsewhere all the time
    assert (tally.counts().affected, tally.counts().moved) == (1, 1)


def test_runs_of_the_process_that_comes_back_are_not_affected() -> None:
    tally = killed()
    tally.on_run("a", "n1", 10.1)  # said before the kill, heard after it
    tally.on_run("b", "n1", 10.1 + LATE_SECONDS)
    assert tally.counts().affected == 1


def test_a_second_death_does_not_count_a_job_twice() -> None:
    tally = killed("a")
    for node, at in (("n2", 11.0), ("n3", 14.0)):
        tally.on_resume("a", died=True)
        tally.on_run("a", node, at)
    tally.on_text("a", 14.5)
    counts = tally.counts()
    assert (counts.affected, counts.moved, counts.slowest) == (1, 1, pytest.approx(4.5))


def test_a_job_that_is_published_again_goes_on_too() -> None:
    """Its API process lost its connection at the same moment."""
    tally = killed("a")
    tally.on_run("a", "n2", 12.0)
    tally.on_text("a", 12.5)
    assert tally.counts().moved == 1


def test_jobs_that_waited_there_are_told_apart() -> None:
    tally = killed(waiting=("a", "b"))
    tally.on_run("a", "n2", 11.0)
    tally.on_closed("a", DONE, 12.0)
    tally.on_closed("b", BROKEN, 12.0)
    counts = tally.counts()
    assert (counts.affected, counts.waiting, counts.waiting_lost) == (0, 2, 1)


async def with_second_process(cluster: Cluster) -> Client:
    async def connect() -> object:
        return cluster.broker.session()

    other = Client("memory", process="other", connect=connect)  # type: ignore[arg-type]
    await other.start()
    cluster.push_async_callback(other.stop)
    await until(lambda: other.connected)
    return other


async def test_every_process_counts_its_own_requests() -> None:
    async with Cluster() as cluster:
        other = await with_second_process(cluster)
        await cluster.add("root")
        await cluster.add("n1", "root", slots=2)
        mine = await cluster.ask("a")
        job = Job(request_id="b", model="m", reply_to="", created=0.0, prompt="p")
        theirs = await other.submit(job)
        await until(lambda: len(cluster.engine("n1").steps) == 2)
        cluster.engine("n1").say("a", "one ")
        await until(lambda: mine.text == "one " and theirs.running)

        drills = cluster.client.drills
        await drills.prepare("d1", "n1", ["other"])
        assert drills.processes == 2
        drills.killed([], [])
        await until(lambda: drills.sums().affected == 2)
        await cluster.kill("n1")
        assert drills.sums().open == 2
        await cluster.add("n2", "root", slots=2)
        await until(lambda: len(cluster.engine("n2").steps) == 2)
        for request_id in ("a", "b"):
            cluster.engine("n2").say(request_id, "two")
        async with asyncio.timeout(30):
            while drills.sums().moved < 2:
                await drills.changed()
        assert drills.sums().slowest is not None
        drills.end()
        await until(lambda: cluster.client.drills.tally is None and other.drills.tally is None)
        for stream in (mine, theirs):
            await stream.aclose()


async def test_a_process_that_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.drill_watch.ANSWER_SECONDS", 0.05)
    async with Cluster() as cluster:
        await cluster.client.drills.prepare("d1", "n1", ["ended"])
        session = cluster.broker.session()
        await session.declare_queue("canopy.watch.stuck.drills", exclusive=True)
        with pytest.raises(Unavailable, match="stuck does not say"):
            await cluster.client.drills.prepare("d2", "n1", ["stuck"])
        await until(lambda: cluster.client.drills.tally is None)


def test_the_counts_on_the_wire_are_those_of_the_tally() -> None:
    fields = set(Counts.__dataclass_fields__)
    assert fields == set(DrillCounts.__struct_fields__) - {"process", "number"}
