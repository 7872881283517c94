"""The supervisor with small programs in the place of nodes and API."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cli import instance
from cli.errors import CliError
from cli.home import Home
from cli.process import Spec
from cli.supervisor import Kept, Supervisor

SERVES = """
import signal
done = []
signal.signal(signal.SIGUSR1, lambda *_: done.append(print("finishing", flush=True)))
print("ready", flush=True)
while not done:
    signal.pause()
"""
SECONDS = 20.0


def program(name: str, code: str) -> Spec:
    return Spec(name, [sys.executable, "-S", "-E", "-c", code], is_ready=lambda line: line == "ready")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.make()
    return home


@pytest.fixture
def said() -> "asyncio.Queue[str]":
    return asyncio.Queue()


@pytest_asyncio.fixture
async def children(home: Home, said: "asyncio.Queue[str]") -> AsyncIterator[Supervisor]:
    children = Supervisor(home, None, said.put_nowait)
    yield children
    await children.stop()


def states(home: Home) -> dict[str, str]:
    return {each.name: each.state for each in instance.recorded_processes(home)}


async def heard(said: "asyncio.Queue[str]", wanted: str) -> str:
    async with asyncio.timeout(SECONDS):
        while wanted not in (line := await said.get()):
            pass
    return line


async def test_what_crashes_is_restarting_and_then_back(
    children: Supervisor, home: Home, said: "asyncio.Queue[str]"
) -> None:
    await children._start(Kept("nodes", program("n1", SERVES)))
    first = children.pid("n1")
    assert states(home)["n1"] == "running"
    children.roster["n1"].send(signal.SIGKILL)
    assert await heard(said, "n1 ended") == "n1 ended (SIGKILL): ready - again in 1 s"
    assert states(home)["n1"] == "restarting"
    await heard(said, "n1 is back")
    assert states(home)["n1"] == "running"
    assert children.pid("n1") != first


async def test_a_replaced_process_is_not_a_crashed_one(
    children: Supervisor, home: Home, said: "asyncio.Queue[str]"
) -> None:
    await children._start(Kept("nodes", program("n1", SERVES)))
    first = children.pid("n1")
    await children.replace("n1")
    assert children.pid("n1") != first
    assert states(home)["n1"] == "running"
    assert said.empty()


async def test_a_handed_over_process_finishes_and_leaves(children: Supervisor, home: Home) -> None:
    await children.start_api(program("api", SERVES))
    old = children.roster["api"]
    await children.hand_over("api", grace=SECONDS)
    assert old.status == 0
    assert "finishing" in old.tail
    assert children.roster["api"].status is None
    assert children.pid("api") != old.pid
    assert "api-leaving" not in states(home)


async def test_a_successor_that_does_not_start_changes_nothing(
    children: Supervisor, home: Home, tmp_path: Path
) -> None:
    once = f"import os; os.open({str(tmp_path / 'once')!r}, os.O_CREAT | os.O_EXCL)"
    await children.start_api(program("api", once + SERVES))
    old = children.roster["api"]
    with pytest.raises(CliError, match="api did not start: FileExistsError"):
        await children.hand_over("api", grace=SECONDS)
    assert children.roster["api"] is old
    assert old.status is None
    assert states(home) == {"launcher": "running", "api": "running"}
    assert children.has("api")


async def test_one_rolling_restart_at_a_time(children: Supervisor) -> None:
    with children.replacing(), pytest.raises(CliError, match="under way"), children.replacing():
        pass
    with children.replacing():
        pass


async def test_everything_ends_also_what_is_leaving(children: Supervisor, said: "asyncio.Queue[str]") -> None:
    deaf = SERVES.replace("done.append", "print")
    await children.start_api(program("api", deaf))
    old = children.roster["api"]
    handing_over = asyncio.create_task(children.hand_over("api", grace=SECONDS))
    async with asyncio.timeout(SECONDS):
        while "finishing" not in old.tail:  # noqa: ASYNC110 - its output is no event
            await asyncio.sleep(0.01)
    handing_over.cancel()
    await asyncio.gather(handing_over, return_exceptions=True)
    await children.stop()
    assert old.status is not None
    assert children.roster["api"].status is not None
