"""Operators and the jobs of a tree: lists, cancellation, order. On the in-memory broker."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker.job_messages import (
    Answer,
    AnyQuestion,
    CancelJob,
    ChangeClass,
    FindJobs,
    MoveJob,
    ShowPrompt,
)
from broker.wire import Failed, Waiting
from tests.unit.cluster import Cluster, read, until
from topology.dispatch import HoldHigh
from worker import job_list

ASKED = {"number": "", "reply_to": ""}


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """root -> n1, one slot; r0 runs, r1 to r3 wait."""
    async with Cluster(HoldHigh) as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await until(lambda: {"root", "n1"} <= cluster.client.nodes().keys())
        yield cluster


async def fill(cluster: Cluster, jobs: int = 4, **fields: object) -> None:
    for number in range(jobs):
        await cluster.ask(f"r{number}", user="ada", **fields)  # type: ignore[arg-type]
    await until(lambda: len(cluster.nodes["root"].jobs.waiting) == jobs - 1)
    await until(lambda: cluster.where("r0"))


async def ask(cluster: Cluster, question: AnyQuestion) -> Answer:
    """The answer of the node that knows the job."""
    answers = await cluster.client.job_watch.ask(question, any_known=True)
    known = [answer for answer in answers if answer.known]
    assert len(known) == 1, answers
    return known[0]


def order(cluster: Cluster) -> list[str]:
    return [pending.job.request_id for pending in cluster.nodes["root"].jobs.waiting]


async def test_every_node_says_what_waits_and_what_runs(cluster: Cluster) -> None:
    await fill(cluster)
    cluster.engine("n1").say("r0", "word")
    await until(lambda: cluster.nodes["n1"].jobs.running.tokens() == 1)
    answers = await cluster.client.job_watch.ask(FindJobs(**ASKED, limit=2))
    reports = {answer.node: answer.report for answer in answers}
    root, leaf = reports["root"], reports["n1"]
    assert root is not None and leaf is not None
    assert (root.waiting_count, root.batch_count) == (3, 0)
    assert [(job.request_id, job.position) for job in root.waiting] == [("r1", 1), ("r2", 2)]
    running = leaf.running[0]
    assert (running.request_id, running.user, running.tokens) == ("r0", "ada", 1)
    assert running.trail == ("root", "n1")


async def test_one_job_or_user_is_found_however_long_the_queue(cluster: Cluster) -> None:
    await fill(cluster)
    await cluster.ask("b0", user="bob")
    await until(lambda: len(cluster.nodes["root"].jobs.waiting) == 4)
    one = await ask(cluster, FindJobs(**ASKED, request_id="r3", limit=10))
    assert one.report is not None
    assert [job.position for job in one.report.waiting] == [3 + 1]
    bobs = await ask(cluster, FindJobs(**ASKED, user="bob", limit=10))
    assert bobs.report is not None
    assert [job.request_id for job in bobs.report.waiting] == ["b0"]


@pytest.mark.parametrize("request_id", ["r0", "r2"], ids=["running", "waiting"])
async def test_the_reader_of_a_cancelled_job_hears_who_did_it(
    cluster: Cluster, request_id: str
) -> None:
    await fill(cluster)
    stream = cluster.client.stream(request_id)
    assert stream is not None
    answer = await ask(cluster, CancelJob(**ASKED, request_id=request_id))
    assert answer.node == ("n1" if request_id == "r0" else "root")
    _, frames = await read(stream)
    end = frames[-1]
    assert isinstance(end, Failed)
    assert (end.code, end.message) == ("cancelled", "an operator cancelled this request")
    if request_id == "r0":
        await until(lambda: cluster.where("r1"))  # its slot is free
    else:
        await until(lambda: order(cluster) == ["r1", "r3"])


async def test_a_job_that_arrives_after_its_cancellation_ends_too(cluster: Cluster) -> None:
    answers = await cluster.client.job_watch.ask(CancelJob(**ASKED, request_id="late"))
    assert [answer.known for answer in answers] == [False, False]
    _, frames = await read(await cluster.ask("late"))
    assert isinstance(frames[-1], Failed)


async def test_a_job_moves_up_and_all_readers_hear_their_new_places(cluster: Cluster) -> None:
    await fill(cluster)
    stream = cluster.client.stream("r3")
    other = cluster.client.stream("r1")
    assert stream is not None and other is not None
    await until(lambda: stream.position == 3 and other.position == 1)
    answer = await ask(cluster, MoveJob(**ASKED, request_id="r3", before="class"))
    assert answer.note == "it is next of the interactive jobs"
    assert order(cluster) == ["r3", "r1", "r2"]
    await until(lambda: stream.position == 1 and other.position == 2)


async def test_a_batch_job_comes_before_all_and_back(cluster: Cluster) -> None:
    await fill(cluster)
    await cluster.ask("batch", user="bob", job_class="batch")
    await until(lambda: order(cluster) == ["r1", "r2", "r3", "batch"])
    await ask(cluster, MoveJob(**ASKED, request_id="batch", before="all"))
    assert order(cluster) == ["batch", "r1", "r2", "r3"]
    await ask(cluster, ChangeClass(**ASKED, request_id="r1", job_class="batch"))
    assert order(cluster) == ["batch", "r2", "r3", "r1"]
    again = await ask(cluster, ChangeClass(**ASKED, request_id="r1", job_class="batch"))
    assert again.note == "it is in class batch already"
    cluster.engine("n1").finish("r0")
    await until(lambda: cluster.where("batch"))
    assert cluster.engine("n1").jobs["batch"].job_class == "interactive"


async def test_a_running_job_cannot_move(cluster: Cluster) -> None:
    await fill(cluster)
    answer = await ask(cluster, MoveJob(**ASKED, request_id="r0", before="class"))
    assert (answer.known, answer.note) == (True, "it runs already")


@pytest.mark.parametrize("request_id", ["r0", "r2"], ids=["running", "waiting"])
async def test_a_prompt_is_shown_on_request(cluster: Cluster, request_id: str) -> None:
    await fill(cluster)
    answer = await ask(cluster, ShowPrompt(**ASKED, request_id=request_id))
    assert (answer.prompt, answer.letters) == ("user:\nhello", 11)


async def silence(heard: list[None]) -> None:
    """Returns when nothing was heard for ten times as long as a look takes."""
    while True:
        heard.clear()
        await asyncio.sleep(0.1)
        if not heard:
            return


async def test_a_node_publishes_its_jobs_while_somebody_watches(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_list, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(job_list, "TOKENS_SECONDS", 0.01)
    jobs = cluster.client.job_watch

    def reported() -> dict[str, tuple[int, int]]:
        reports = [latest.report for latest in jobs.reports()]
        return {each.node: (each.waiting_count, len(each.running)) for each in reports}

    await fill(cluster)
    assert reported() == {}
    await jobs.watch()
    await until(lambda: reported() == {"root": (3, 0), "n1": (0, 1)})
    cluster.engine("n1").finish("r0")
    await until(lambda: reported() == {"root": (2, 0), "n1": (0, 1)})

    heard: list[None] = []
    jobs.listen(lambda: heard.append(None))
    async with asyncio.timeout(30):
        await silence(heard)  # once nothing changes any more, nothing is said
    cluster.engine("n1").say("r1", "word")
    await until(lambda: heard)

    await jobs.unwatch()
    assert reported() == {}


async def test_a_lease_that_is_not_renewed_ends(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_list, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr("broker.job_watch.REPORT_SECONDS", 0.05)
    await cluster.client.job_watch.watch()
    listing = cluster.nodes["root"]._job_list
    await until(cluster.client.job_watch.reports)
    await until(lambda: listing._timer is None)
    await cluster.ask("later")
    await until(lambda: cluster.where("later"))
    assert all(not latest.report.running for latest in cluster.client.job_watch.reports())


async def test_a_waiting_frame_is_not_late_for_the_moved_job(cluster: Cluster) -> None:
    """Its reader was just told a place: it hears of the new one at once all the same."""
    await fill(cluster)
    stream = cluster.client.stream("r3")
    assert stream is not None
    await until(lambda: stream.position == 3)
    await ask(cluster, MoveJob(**ASKED, request_id="r3", before="class"))
    async with asyncio.timeout(0.5):
        async for frame in stream:
            if isinstance(frame, Waiting) and frame.position == 1:
                break
