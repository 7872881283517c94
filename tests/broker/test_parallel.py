"""A model divided among processes: the same tokens as in one, and no process left behind."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from structlog.testing import capture_logs

from broker.wire import Job, Sampling
from tests.unit.engine.tiny import save_model
from worker.engines import create
from worker.engines.base import EngineError, EngineUnavailable
from worker.engines.transformers.engine import TransformersEngine
from worker.engines.transformers.tensor_parallel import leader as parallel
from worker.engines.transformers.tensor_parallel.protocol import Decode

PROMPTS = [
    "The quick brown fox",
    "Hi",
    "a" * 70,
    "Once upon a time, there was a model",
    "Ünïcödé 日本語 😀",
]

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(torch.accelerator.is_available(), reason="transformers would take the GPUs"),
    pytest.mark.filterwarnings("ignore"),  # torch's own
]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One core each, as tiny matrices gain nothing from a second; plain logs, as structlog's own
    tracebacks take seconds.
    """
    monkeypatch.setenv("CANOPY_THREADS", "1")
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("llama", "qwen3", "gemma3", "gpt2"):
        save_model(kind, folder / kind)
    return folder


def made(folder: Path, ranks: int, slots: int | None = 3) -> TransformersEngine:
    engine = create(
        "transformers",
        model="tiny",
        model_path=str(folder),
        device="cpu",
        slots=slots,
        token_delay=0,
        tensor_parallel=ranks,
    )
    assert isinstance(engine, TransformersEngine)
    return engine


@pytest.fixture
async def two(models: Path) -> AsyncIterator[TransformersEngine]:
    engine = made(models / "llama", 2)
    await engine.start()
    yield engine
    await engine.stop()


def job(prompt: str, **settings: Any) -> Job:
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 24, **settings})
    return Job(
        request_id="r", model="tiny", reply_to="q", created=0.0, prompt=prompt, sampling=sampling
    )


async def answer(engine: TransformersEngine, wanted: Job) -> tuple[str, list[int]]:
    text, ids = "", []
    async for chunk in engine.run(wanted):
        text += chunk.text
        ids += chunk.ids
    return text, ids


async def answers(engine: TransformersEngine, jobs: list[Job]) -> list[tuple[str, list[int]]]:
    """As many at a time as there are slots; later ones find earlier prefixes."""
    free = asyncio.Semaphore(engine.slots)

    async def one(wanted: Job) -> tuple[str, list[int]]:
        async with free:
            return await answer(engine, wanted)

    return await asyncio.gather(*map(one, jobs))


async def streaming(engine: TransformersEngine, streamed_job: Job) -> "asyncio.Task[None]":
    """A run in progress; returns when its first tokens have come."""
    begun = asyncio.Event()

    async def run() -> None:
        async for chunk in engine.run(streamed_job):
            if chunk.text:
                begun.set()

    task = asyncio.create_task(run())
    async with asyncio.timeout(30):
        await asyncio.wait(
            [task, asyncio.create_task(begun.wait())], return_when=asyncio.FIRST_COMPLETED
        )
    return task


def followers(of: int | None = None) -> list[psutil.Process]:
    children = psutil.Process(of).children()
    return [
        child
        for child in children
        if "worker.engines.transformers.tensor_parallel.follower" in child.cmdline()
    ]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
async def test_two_processes_say_what_one_says(kind: str, models: Path) -> None:
    jobs = [job(prompt) for prompt in PROMPTS]
    jobs += [job("a" * 70 + " and more of it")]  # a copy of another slot, or the rest of its own
    jobs += [job(prompt, temperature=1.0, seed=5, top_p=0.9) for prompt in PROMPTS[:2]]
    outcomes = []
    for ranks in (1, 2):
        engine = made(models / kind, ranks)
        with capture_logs() as lines:
            await engine.start()
        assert "the last layer is computed of all tokens" not in [line["event"] for line in lines]
        outcomes.append(await answers(engine, jobs))
        await engine.stop()
    assert outcomes[1] == outcomes[0]
    assert all(ids for _, ids in outcomes[0])
    assert not followers()


async def test_all_processes_decide_how_many_slots_there_are_where_nobody_says(
    models: Path,
) -> None:
    engine = made(models / "llama", 2, slots=None)
    await engine.start()
    try:
        assert engine.slots == 8
        decisions = await answers(
            engine, [job("The quick brown fox", max_tokens=4)] * 9
        )  # the eighth slot is there, too
        assert decisions == [decisions[0]] * 9
    finally:
        await engine.stop()


async def test_a_follower_that_is_killed_fails_the_jobs_and_the_engine_starts_again(
    two: TransformersEngine,
) -> None:
    calm = await answer(two, job("The quick brown fox"))
    run = await streaming(two, job("Hello", max_tokens=400, logit_bias={1: -100.0}))
    [follower] = followers()
    follower.send_signal(signal.SIGKILL)
    async with asyncio.timeout(20):
        with pytest.raises(EngineError, match=r"rank 1 of the model has ended.*signal 9") as caught:
            await run
        assert caught.value.retryable
        with pytest.raises(EngineError, match="rank 1"):  # until it is restarted
            await answer(two, job("Hi"))
    await two.stop()
    assert not two.stuck
    assert not followers()
    await two.start()
    assert await answer(two, job("The quick brown fox")) == calm
    [follower] = followers()  # and again, while idle
    follower.send_signal(signal.SIGKILL)
    follower.wait(5)
    async with asyncio.timeout(20):
        with pytest.raises(EngineError, match="rank 1"):
            await answer(two, job("Hi"))


async def test_a_follower_that_stops_is_ended_with_the_engine(two: TransformersEngine) -> None:
    """Only the group's timeout would end the step, so `stop` does."""
    run = await streaming(two, job("Hello", max_tokens=400, logit_bias={1: -100.0}))
    [follower] = followers()
    follower.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(20):
        await two.stop()
        with pytest.raises(EngineError):
            await run
    assert not two.stuck
    assert not followers()


async def test_a_follower_that_stops_fails_the_jobs_when_the_groups_limit_is_over(
    two: TransformersEngine,
) -> None:
    limit = timedelta(seconds=4)  # for collectives from now on
    torch.distributed.distributed_c10d._set_pg_timeout(limit, torch.distributed.group.WORLD)
    run = await streaming(two, job("Hello", max_tokens=400, logit_bias={1: -100.0}))
    [follower] = followers()
    follower.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(20):
        with pytest.raises(EngineError) as caught:
            await run
    assert caught.value.retryable
    assert not followers()  # ranks out of step are ended at once


async def test_a_step_that_fails_here_is_the_end_for_all(
    two: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ranks would wait for this one for ever."""
    assert two._decoder is not None
    model = two._decoder._loaded.model

    def failing(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "forward", failing)
    async with asyncio.timeout(20):
        with pytest.raises(EngineError, match="out of memory") as caught:
            await answer(two, job("Hi"))
        assert caught.value.retryable
        with pytest.raises(EngineError, match="rank 0 of the model failed"):
            await answer(two, job("Hi"))
    assert not followers()


async def test_a_step_that_fails_in_a_follower_says_why(two: TransformersEngine) -> None:
    assert two._decoder is not None
    leader = two._decoder._loaded.runner
    assert isinstance(leader, parallel.TensorParallelRunner)
    leader._followers.send(Decode([99], [0]))  # there is no such slot
    assert leader._followers.wait_for_loss(10)
    async with asyncio.timeout(20):
        with pytest.raises(EngineError, match=r"^rank 1 of the model: .*index .*out of") as caught:
            await answer(two, job("Hi"))
    assert caught.value.retryable


async def test_what_cannot_be_divided_is_said_in_one_line(models: Path) -> None:
    with pytest.raises(
        EngineUnavailable, match=r"^GPT2LMHeadModel has no tensor-parallel plan.*device only$"
    ):
        await made(models / "gpt2", 2).start()
    with pytest.raises(
        EngineUnavailable, match=r"^LlamaForCausalLM cannot be divided by 3: .*heads is 4$"
    ):
        await made(models / "llama", 3).start()
    with pytest.raises(EngineUnavailable, match="no model folder"):
        await made(models / "nothing", 2).start()
    assert not followers()


async def test_a_shard_that_cannot_be_loaded_ends_all(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Any:
        raise OSError("the disk is gone")

    monkeypatch.setattr(parallel.sharding, "load_shard", failing)
    with pytest.raises(EngineUnavailable, match="the disk is gone"):
        await made(models / "llama", 2).start()
    assert not followers()


_NODE = """
import asyncio, sys
from tests.broker.test_parallel import job, made
from pathlib import Path
from broker import logs

async def main():
    engine = made(Path(sys.argv[1]), 2)
    await engine.start()
    async for chunk in engine.run(job("Hello", max_tokens=400, logit_bias={1: -100.0})):
        print("token", flush=True)

logs.configure_node(logs.read({}), "n1")  # to standard error
asyncio.run(main())
"""


def test_followers_end_with_a_node_that_is_killed(models: Path) -> None:
    """In the middle of a step."""
    with subprocess.Popen(
        [sys.executable, "-c", _NODE, str(models / "llama")],
        stdout=subprocess.PIPE,
        cwd=Path.cwd(),
        env=os.environ,
    ) as node:
        assert node.stdout is not None
        assert node.stdout.readline() == b"token\n"
        [follower] = followers(node.pid)
        node.kill()
        follower.wait(10)
        assert not follower.is_running()
