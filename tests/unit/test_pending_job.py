"""Large jobs wait as the bytes that came, and nothing of them is lost on the way."""

import sys
import tracemalloc

import msgspec
import pytest

from broker.encoding import encode
from broker.session import Delivery
from broker.wire import ChatMessage, Grammar, Job, Sampling
from tests.unit.cluster import Cluster, until
from topology.dispatch import HoldHigh
from worker import life
from worker.pending_job import (
    LARGE_BYTES,
    MAX_TRAIL,
    PendingJob,
    with_content,
    without_content,
)


def delivery(job: Job) -> Delivery:
    return Delivery(encode(job), "", "", {}, False, lambda _done: None)


@pytest.mark.parametrize("letters", [10, LARGE_BYTES * 2])
def test_a_job_is_kept_once_and_whole(letters: int) -> None:
    text = "模型🌳"[:2] * letters
    job = Job(
        request_id="a",
        model="m",
        reply_to="q",
        created=1.0,
        messages=(ChatMessage(role="user", content=text),),
        sampling=Sampling(max_tokens=9, grammar=Grammar(kind="regex", source="a")),
        delivered="so far",
        delivered_ids=(1, 2),
        user="ada",
    )
    taken = delivery(job)
    kept = without_content(job, taken)
    assert (kept.messages is None) == (kept.sampling.grammar is None) == bool(taken.body)
    kept = msgspec.structs.replace(kept, restarted=True)
    assert with_content(kept, taken) == msgspec.structs.replace(job, restarted=True)


def test_the_way_through_nodes_of_the_former_release_has_no_waits() -> None:
    job = Job(
        request_id="a",
        model="m",
        reply_to="q",
        created=1.0,
        prompt="x",
        trail=("root", "n1"),
        waits=(1.5,),
    )
    trail, waits = PendingJob.of(job, delivery(job)).way_to("n2")
    assert trail == ("root", "n1", "n2")
    assert waits[:2] == (1.5, 0.0)
    assert 0 <= waits[2] < 1
    long = msgspec.structs.replace(job, trail=("n1",) * 100, waits=(0.0,) * 100)
    trail, waits = PendingJob.of(long, delivery(long)).way_to("n2")
    assert len(trail) == len(waits) == MAX_TRAIL


async def test_a_large_job_that_waits_and_is_moved_arrives_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(life, "GRACE_SECONDS", 0.1)  # the run does not end by itself
    async with Cluster(HoldHigh) as cluster:
        root = await cluster.add("root")
        text = "word " * LARGE_BYTES
        job = Job(
            request_id="a", model="m", reply_to="", created=0.0, prompt=text, seconds_left=60.0
        )
        await cluster.client.submit(job)
        await until(lambda: len(root.jobs.waiting) == 1)
        held = next(iter(root.jobs.waiting))
        assert held.job.prompt is None
        await cluster.add("n1", "root")
        await until(lambda: "a" in cluster.engine("n1").jobs)
        await cluster.end("n1")  # gives it back
        await cluster.add("n2", "root")
        await until(lambda: "a" in cluster.engine("n2").jobs)
        assert cluster.engine("n2").jobs["a"].prompt == text


@pytest.mark.parametrize("letter", ["a", "ä", "模", "🌳"])
async def test_waiting_prompts_cost_their_size_twice_and_nothing_afterwards(letter: str) -> None:
    """The reader keeps the text, the root its message (here also the broker's)."""
    async with Cluster(HoldHigh) as cluster:
        root = await cluster.add("root")
        jobs, letters = 30, 100_000
        tracemalloc.start()
        try:
            streams = []
            for number in range(jobs):
                prompt = letter * letters + str(number)
                job = Job(
                    request_id=f"r{number}", model="m", reply_to="", created=0.0, prompt=prompt
                )
                streams.append(await cluster.client.submit(job))
            del job, prompt
            await until(lambda: len(root.jobs.waiting) == jobs)
            text = jobs * sys.getsizeof(letter * letters)
            message = jobs * letters * len(letter.encode())
            waiting = tracemalloc.get_traced_memory()[0]
            assert waiting < 1.1 * (
                text + 1.5 * message
            )  # msgspec's buffer grows by halves, and is not cut
            for stream in streams:
                await stream.aclose()
            del stream, streams
            await until(lambda: not cluster.sessions["root"].unsettled)
            assert tracemalloc.get_traced_memory()[0] < 0.1 * waiting
        finally:
            tracemalloc.stop()
