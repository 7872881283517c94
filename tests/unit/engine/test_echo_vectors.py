"""The echo engine's vectors and scores."""

import math
import struct
from typing import Any

import pytest

from broker.wire import Job, Pooling, Task
from worker.engines import create
from worker.engines.base import Chunk, Engine, EngineUnavailable, InvalidRequest


def echo(task: str) -> Engine:
    return create(
        "echo", model="m", model_path=None, device="auto", slots=4, token_delay=0, task=task
    )


def job(task: Task, *inputs: str | tuple[int, ...], delivered: int = 0, **fields: Any) -> Job:
    return Job(
        request_id="r",
        model="m",
        reply_to="q",
        created=0,
        task=task,
        pooling=Pooling(inputs=inputs, **fields),
        delivered_inputs=delivered,
    )


async def read(task: Task, item: Job) -> list[Chunk]:
    return [chunk async for chunk in echo(task).run(item)]


def numbers(chunks: list[Chunk]) -> list[tuple[float, ...]]:
    rows = [row for chunk in chunks for row in chunk.rows]
    return [struct.unpack(f"<{len(row) // 4}f", row) for row in rows]


async def test_vectors_have_unit_length_and_depend_on_the_text_alone() -> None:
    chunks = await read("embed", job("embed", "a b", "c", "a b", (5, 6)))
    assert chunks[0].prompt_tokens == 2 + 1 + 2 + 2
    assert chunks[-1].finish == "stop"
    first, second, third, _ = numbers(chunks)
    assert first == third != second
    assert len(first) == 8
    assert math.hypot(*first) == pytest.approx(1)
    [wide] = numbers(await read("embed", job("embed", "a", dimensions=100)))
    assert len(wide) == 100
    with pytest.raises(InvalidRequest, match="at most 4096"):
        await read("embed", job("embed", "a", dimensions=5000))


async def test_a_continued_job_sends_the_rest() -> None:
    whole = numbers(await read("embed", job("embed", "a", "b", "c")))
    assert numbers(await read("embed", job("embed", "a", "b", "c", delivered=2))) == whole[2:]


async def test_scores_are_common_words() -> None:
    chunks = await read(
        "score", job("score", "what grows", "a tree grows", queries=("What grows",))
    )
    assert numbers(chunks) == [(1.0,), (0.25,)]
    assert chunks[0].prompt_tokens == 2 + 3 + 2 * 2


async def test_it_does_what_it_was_started_for() -> None:
    with pytest.raises(InvalidRequest, match="does not score"):
        await read("embed", job("score", "a", queries=("q",)))
    with pytest.raises(InvalidRequest, match="does not embed"):
        await read("generate", job("embed", "a"))
    with pytest.raises(EngineUnavailable, match="no task 'sort'"):
        echo("sort")
