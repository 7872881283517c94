"""The openai engine in a node."""

import pytest

from broker.wire import (
    Finished,
    Interrupted,
)
from tests.unit.cluster import Cluster, until
from tests.unit.engine.openai.runs import before, chat, cut_off
from tests.unit.engine.upstream import (
    Script,
    answering,
    refusing,
)
from tests.unit.frame_readers import Told
from worker.engines.base import (
    Engine,
    EngineFailed,
)
from worker.run import JobRun
from worker.rw_lock import ReadersWriterLock


def job_run(engine: Engine) -> JobRun:
    return JobRun(engine, chat(), "n1", "boot", 1, Told(), ReadersWriterLock(lambda: None))


async def test_a_run_counts_what_the_server_has_counted() -> None:
    async with before(answering("many words", usage=(11, 40))) as (engine, _):
        run = job_run(engine)
        ending = await run.run()
        assert isinstance(ending, Finished)
        assert (ending.prompt_tokens, ending.completion_tokens) == (11, 40)
        assert run.tokens == 40


@pytest.mark.parametrize(
    ("script", "alone"), [(cut_off, True), (refusing(404, {"error": "no such model"}), False)]
)
async def test_a_run_says_whether_the_engine_works_on(script: Script, alone: bool) -> None:
    async with before(script) as (engine, _):
        run = job_run(engine)
        ending = await run.run()
        assert isinstance(ending, Interrupted)
        assert ending.fault
        assert run.isolated is alone


async def test_a_run_that_fails_alone_goes_on_elsewhere_and_its_engine_is_left_alone() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root", slots=2)
        streams = [await cluster.ask(name) for name in ("a", "b")]
        await until(lambda: cluster.where("a") == cluster.where("b") == "n1")
        await cluster.add("n2", "root")
        cluster.engine("n1").steps["a"].put_nowait(EngineFailed("lost", isolated=True))
        await until(lambda: cluster.where("a") == "n2")
        assert cluster.where("b") == "n1"
        assert cluster.engine("n1").starts == 1
        assert cluster.nodes["n1"].state().status == "idle"
        for each in streams:
            await each.aclose()
