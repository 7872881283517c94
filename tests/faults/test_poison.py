"""One bad job among fifty good ones: it alone fails, and its reader is told why."""

import time

import pytest

from cli.rabbitmq import Broker
from tests.faults.conftest import Grow, Open
from tests.faults.dead import letters
from tests.faults.nodes import Tree

MAX_ATTEMPTS = 3


@pytest.mark.parametrize(
    ("fault", "word"),
    [("poison", "poison"), ("hang", "hang"), ("out of memory", "oom")],
)
async def test_one_bad_job_among_fifty_good_ones(
    fault: str, word: str, broker: Broker, grow: Grow, account: Open
) -> None:
    """It takes down what runs beside it; after three attempts it is given up on."""
    began = time.time()
    tree: Tree = await grow(
        engine="tests.faults.engine", slots=2, always={"CANOPY_STEP_SECONDS": "2"}
    )
    tree.supervise()
    ledger = account(fault, "one job among 50 good ones")
    await ledger.submit(25, tokens=15)
    guilty = await ledger.ask(15, word, failing="given_up")
    await ledger.submit(25, tokens=15)
    assert await ledger.settled() == []
    [letter] = await letters(broker, lambda letter: letter.id == guilty.request_id, 1)
    assert letter.job is not None
    assert letter.job.messages is not None
    assert letter.job.messages[-1].content == word
    assert letter.headers["request_id"] == guilty.request_id
    assert letter.headers["model"] == "echo"
    assert letter.reason
    assert letter.node in tree.parents
    assert letter.at is not None
    assert began <= letter.at <= time.time()
    trail, faults = letter.headers["trail"], letter.headers["faults"]
    assert isinstance(trail, list)
    assert isinstance(faults, list)
    assert trail[0] == "root"
    assert len(faults) == MAX_ATTEMPTS
    await tree.whole()


async def test_killed_between_the_dead_letter_and_the_readers_last_frame(
    broker: Broker, grow: Grow, account: Open
) -> None:
    tree: Tree = await grow(
        count=1, engine="tests.faults.engine", env={"n1": {"CANOPY_FAULT_POINT": "buried:1"}}
    )
    tree.supervise()
    ledger = account("poison, and kill -9", "the node that buries it, before its reader is told")
    guilty = await ledger.ask(15, "oom", failing="given_up")
    await ledger.until(lambda: guilty.end is not None)
    await ledger.submit(5, tokens=15)
    assert await ledger.settled() == []
    assert len(await letters(broker, lambda letter: letter.id == guilty.request_id, 2)) >= 2
    await tree.whole()


async def test_a_job_that_only_fails_itself_is_told_so_at_once(grow: Grow, account: Open) -> None:
    tree: Tree = await grow(engine="tests.faults.engine", slots=2)
    ledger = account("exception in a run", "one job among 50 good ones")
    await ledger.submit(25, tokens=15)
    await ledger.ask(15, "throw", failing="internal")
    await ledger.submit(25, tokens=15)
    assert await ledger.settled() == []
    assert all(process.process.poll() is None for process in tree.processes.values())
    await tree.whole()
