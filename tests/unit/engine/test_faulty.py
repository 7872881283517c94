"""The engine that the fault tests use does what its words say, and nothing else."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from broker.wire import ChatMessage, Job
from worker.engines import create
from worker.engines.base import Chunk, Engine, EngineError, EngineUnavailable
from worker.watchdog import Watchdog

ROOT = Path(__file__).parents[3]
PROGRAM = """
import asyncio, sys
from tests.unit.engine.test_faulty import faulty, job

async def main():
    async for chunk in faulty().run(job(sys.argv[1])):
        print(repr(chunk.text), flush=True)

asyncio.run(main())
"""


def faulty(delay: float = 0.0) -> Engine:
    return create(
        "tests.faults.engine", model="m", model_path=None, device="auto", slots=4, token_delay=delay
    )


def job(said: str, delivered: str = "") -> Job:
    messages = tuple(ChatMessage(role="user", content=text) for text in ("poison hang oom", said))
    return Job(
        request_id="r", model="m", reply_to="q", created=0, messages=messages, delivered=delivered
    )


async def read(engine: Engine, item: Job) -> list[Chunk]:
    return [chunk async for chunk in engine.run(item)]


async def begun(engine: Engine, item: Job) -> asyncio.Task[list[Chunk]]:
    """A task that reads the answer; returns once the first chunk has come."""
    first = asyncio.Event()

    async def run() -> list[Chunk]:
        chunks = []
        async for chunk in engine.run(item):
            chunks.append(chunk)
            first.set()
        return chunks

    task = asyncio.create_task(run())
    await first.wait()
    return task


async def hung(engine: Engine) -> None:
    """Returns when a watchdog says that a step hangs."""
    noticed = asyncio.Event()
    dog = Watchdog(engine, 0.01, lambda _seconds: noticed.set())
    dog.start()
    await noticed.wait()
    await dog.stop()


def killed(said: str) -> tuple[str, int]:
    """What a process printed that ran this job, and how it ended."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, said],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return run.stdout, run.returncode


async def test_without_such_a_word_it_is_echo_and_goes_on_like_it() -> None:
    chunks = await read(faulty(), job("a b c", delivered="a"))
    assert chunks == [
        Chunk(prompt_tokens=6, tokens=1),
        Chunk(text=" b", tokens=1),
        Chunk(text=" c", tokens=1, finish="stop"),
    ]


def test_poison_kills_the_process_at_the_first_token() -> None:
    assert killed("some poison") == ("''\n", -signal.SIGKILL)


def test_die_once_kills_one_process(tmp_path: Path) -> None:
    said = f"die-once:{tmp_path / 'died'} a"
    assert killed(said) == ("''\n", -signal.SIGKILL)
    assert killed(said)[1] == 0


async def test_out_of_memory_fails_every_run_until_a_restart() -> None:
    engine = faulty(0.001)
    other = await begun(engine, job("a " * 10_000))
    texts = []
    with pytest.raises(EngineError, match="out of memory") as caught:
        async for chunk in engine.run(job("x oom y")):
            texts.append(chunk.text)
    assert texts == ["", "x"]
    assert (caught.value.code, caught.value.retryable) == ("engine", True)
    for failing in (other, read(engine, job("a"))):
        with pytest.raises(EngineError, match="out of memory"):
            await failing
    await engine.stop()
    await engine.start()
    assert len(await read(engine, job("a b"))) == 3


async def test_a_hang_is_seen_and_ends_with_stop() -> None:
    engine = faulty(0.001)
    other = await begun(engine, job("a " * 10_000))
    assert engine.stalled() == 0.0
    hanging = await begun(engine, job("x hang"))
    await hung(engine)
    await engine.stop()
    for run in (hanging, other):
        with pytest.raises(EngineError, match="stopping"):
            await run
    assert engine.stalled() == 0.0
    assert not engine.stuck
    await engine.start()
    assert await read(engine, job("a"))


async def test_what_is_stuck_needs_a_new_process() -> None:
    engine = faulty()
    hanging = await begun(engine, job("stuck"))
    await hung(engine)
    await engine.stop()
    with pytest.raises(EngineError):
        await hanging
    assert engine.stuck
    with pytest.raises(EngineUnavailable, match="new process"):
        await engine.start()


async def test_a_bug_ends_its_own_run() -> None:
    engine = faulty(0.001)
    other = await begun(engine, job("a b c d"))
    with pytest.raises(RuntimeError, match="bug"):
        await read(engine, job("throw"))
    assert len(await other) == 5
