"""Text for readers that wait for the whole answer: fewer frames, the same answer."""

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.wire import Finished, Interrupted, Job, TokenLogprob
from tests.unit.api_site import FakeClient
from tests.unit.cluster import HandEngine, until
from tests.unit.frame_readers import Told
from worker.chunk_joiner import MAX_HELD, ChunkJoiner
from worker.engines.base import Chunk, EngineFailed
from worker.run import JobRun
from worker.rw_lock import ReadersWriterLock


def chunk(text: str, token: int) -> Chunk:
    return Chunk(text=text, tokens=1, ids=(token,), logprobs=(TokenLogprob(text.encode(), -1.0),))


def test_the_first_text_goes_out_at_once_and_the_next_ones_together() -> None:
    joiner = ChunkJoiner(0.25)
    assert joiner.add(chunk("a", 1), 10.0) == chunk("a", 1)
    assert joiner.add(chunk("b", 2), 10.1) is None
    joined = joiner.add(chunk("c", 3), 10.25)
    assert joined is not None
    assert (joined.text, joined.tokens, joined.ids) == ("bc", 2, (2, 3))
    assert [logprob.token for logprob in joined.logprobs] == [b"b", b"c"]
    assert joiner.take() is None


def test_what_a_job_asks_for_is_bounded() -> None:
    joiner = ChunkJoiner(1e9)
    joiner.add(chunk("a", 1), 0.0)
    assert joiner.add(chunk("b", 2), 0.9) is None
    assert joiner.add(chunk("c", 3), 1.0) is not None
    assert [joiner.add(chunk("d", 4), 1.0) for _ in range(MAX_HELD)].count(None) == MAX_HELD - 1


@given(st.lists(st.tuples(st.text(min_size=1), st.floats(0.0, 0.5))))
def test_nothing_is_lost_or_repeated(steps: list[tuple[str, float]]) -> None:
    joiner, now = ChunkJoiner(0.25), 0.0
    sent: list[Chunk | None] = []
    for text, pause in steps:
        now += pause
        sent.append(joiner.add(Chunk(text=text, tokens=1), now))
    sent.append(joiner.take())
    told = [each for each in sent if each is not None]
    assert "".join(each.text for each in told) == "".join(text for text, _ in steps)
    assert sum(each.tokens for each in told) == len(steps)


class Running:
    """A run of a job whose reader waits for the whole."""

    def __init__(self) -> None:
        self.engine = HandEngine("tiny", 1)
        self.told = Told()
        job = Job(
            request_id="a",
            model="tiny",
            reply_to="",
            created=0.0,
            prompt="go on",
            flush_seconds=1.0,
        )
        lock = ReadersWriterLock(lambda: None)
        self.run = JobRun(self.engine, job, "n1", "boot", 1, self.told, lock)
        self.ending = asyncio.create_task(self.run.run())

    async def say(self, *texts: str) -> None:
        await until(lambda: "a" in self.engine.steps)
        for text in texts:
            self.engine.say("a", text)
        await until(lambda: self.run.tokens == len(texts))


async def test_the_rest_comes_before_the_end() -> None:
    running = Running()
    await running.say("one ", "two ", "three")
    assert running.told.texts() == ["one "]
    running.engine.finish("a")
    ending = await running.ending
    assert running.told.texts() == ["one ", "two three"]
    assert isinstance(ending, Finished)
    assert (ending.seq, ending.completion_tokens) == (len(running.told.frames), 3)


@pytest.mark.parametrize("way", ["fails", "is interrupted", "is cancelled"])
async def test_the_reader_has_all_text_of_a_run_that_ends_early(way: str) -> None:
    running = Running()
    await running.say("one ", "two ", "three")
    match way:
        case "fails":
            running.engine.steps["a"].put_nowait(EngineFailed("lost"))
        case "is interrupted":
            running.run.interrupt("the node stops", fault=False)
        case _:
            running.run.cancel()
    ending = await running.ending
    assert running.told.texts() == ["one ", "two three"]
    assert isinstance(ending, Finished | Interrupted)
    assert ending.seq == len(running.told.frames)


MESSAGES = [{"role": "user", "content": "one two"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "one two"}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 5}),
        ("/v1/responses", {"input": "one two"}),
        ("/arranca/", {"text": "one two", "timestamp": 1}),
    ],
)
async def test_only_a_stream_is_read_as_it_grows(
    program: httpx.AsyncClient, fake: FakeClient, path: str, body: dict[str, Any]
) -> None:
    for stream in (False, True):
        answer = await program.post(path, json={"model": "tiny", "stream": stream, **body})
        assert answer.status_code == 200, answer.text
    assert [bool(job.flush_seconds) for job in fake.jobs] == [True, False]
