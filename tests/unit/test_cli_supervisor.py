"""The supervisor with small programs in the place of nodes and API."""

import asyncio
import dataclasses
import errno
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker.exit_status import REMOVED
from cli import process, processes, roster, supervisor
from cli.errors import CliError, ProcessError, StateError
from cli.home import Home
from cli.logfile import LogFile
from cli.process import Spec
from cli.service import Service
from cli.supervisor import Supervisor

SERVES = """
import signal
done = []
signal.signal(signal.SIGUSR1, lambda *_: done.append(print("finishing", flush=True)))
print("ready", flush=True)
while not done:
    signal.pause()
"""
BEATS = """
import asyncio
from broker.heartbeat import send_heartbeats
async def live():
    beats = asyncio.create_task(send_heartbeats())
    await asyncio.sleep(0)
    print("ready", flush=True)
    await beats
asyncio.run(live())
"""
SECONDS = 20.0


def program(name: str, code: str) -> Spec:
    return Spec(
        name, [sys.executable, "-S", "-E", "-c", code], is_ready=lambda line: line == "ready"
    )


def beating(name: str) -> Spec:
    """One that gives signs of life from its event loop."""
    command = [sys.executable, "-c", BEATS]
    return Spec(name, command, is_ready=lambda line: line == "ready", beats=True)


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
    return {record.name: record.state for record in processes.read(home)}


async def heard(said: "asyncio.Queue[str]", wanted: str) -> str:
    async with asyncio.timeout(SECONDS):
        while wanted not in (line := await said.get()):
            pass
    return line


async def test_what_crashes_is_restarting_and_then_back(
    children: Supervisor, home: Home, said: "asyncio.Queue[str]"
) -> None:
    await children._start(Service("nodes", program("n1", SERVES)))
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
    await children._start(Service("nodes", program("n1", SERVES)))
    first = children.pid("n1")
    await children.replace("n1")
    assert children.pid("n1") != first
    assert states(home)["n1"] == "running"
    assert said.empty()


async def test_a_node_that_an_operator_removed_is_not_started_again(
    children: Supervisor, home: Home, said: "asyncio.Queue[str]"
) -> None:
    leaves = f'print("ready", flush=True)\nraise SystemExit({REMOVED})'
    await children.add("nodes", program("n8", leaves))
    assert await heard(said, "n8") == "n8 was removed from the tree"
    assert states(home)["n8"] == "removed"
    assert children.names("nodes") == []
    await children.add("nodes", program("n8", SERVES))
    assert states(home)["n8"] == "running"


async def test_nodes_are_added_killed_and_taken_away(
    children: Supervisor, home: Home, said: "asyncio.Queue[str]"
) -> None:
    await children.add("nodes", program("n8", SERVES))
    children.kill("n8")
    await heard(said, "n8 is back")
    await children.remove("n8")
    assert "n8" not in states(home)
    with pytest.raises(StateError, match="no process n8"):
        await children.remove("n8")


async def test_an_added_process_that_does_not_start_leaves_nothing(
    children: Supervisor, home: Home
) -> None:
    with pytest.raises(ProcessError, match="no such model"):
        await children.add("nodes", program("n9", 'print("no such model")'))
    assert "n9" not in states(home)


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


async def test_everything_ends_also_what_is_leaving(
    children: Supervisor, said: "asyncio.Queue[str]"
) -> None:
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


# ---- what must not end the supervision


async def test_a_process_is_restarted_while_no_file_can_be_written(
    children: Supervisor,
    home: Home,
    said: "asyncio.Queue[str]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await children._start(Service("nodes", program("n1", SERVES)))
    first = children.pid("n1")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(processes, "write_private", full)
        patch.setattr(roster, "RETRY_SECONDS", 0.05)
        children.roster["n1"].send(signal.SIGKILL)
        await heard(said, "The disk is full")
        await heard(said, "n1 is back")
    assert children.pid("n1") != first
    async with asyncio.timeout(SECONDS):
        while processes.read(home)[-1].pid != children.pid("n1"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not children.failure.done()


@pytest.mark.parametrize("seed", range(3))
async def test_whichever_write_fails_every_process_comes_back(
    children: Supervisor, home: Home, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Each call that writes a record or a log, or starts a process, fails at random."""
    dice = random.Random(seed)
    errors = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EMFILE, errno.EDQUOT)

    def at_random(works: Callable[..., Any]) -> Callable[..., Any]:
        def fails_sometimes(*arguments: Any, **options: Any) -> Any:
            if dice.random() < 0.4:
                raise OSError(dice.choice(errors), "injected")
            return works(*arguments, **options)

        return fails_sometimes

    monkeypatch.setattr(supervisor, "_BACKOFF", (0.02,))
    monkeypatch.setattr(roster, "RETRY_SECONDS", 0.02)
    names = ["n1", "n2", "n3"]
    async with asyncio.TaskGroup() as together:
        for name in names:
            together.create_task(children._start(Service("nodes", program(name, SERVES))))
    with monkeypatch.context() as patch:
        patch.setattr(processes, "write_private", at_random(processes.write_private))
        patch.setattr(LogFile, "_open", at_random(LogFile._open))
        patch.setattr(LogFile, "_append", at_random(LogFile._append))
        patch.setattr(process, "_spawn", at_random(process._spawn))
        for _ in range(10):
            victim = dice.choice(names)
            former = children.pid(victim)
            children.roster[victim].send(signal.SIGKILL)
            await replaced(children, victim, former)
    for name in names:
        former = children.pid(name)
        children.roster[name].send(signal.SIGKILL)
        await replaced(children, name, former)
    async with asyncio.timeout(SECONDS):
        while states(home) != dict.fromkeys(["launcher", *names], "running"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not children.failure.done()


async def replaced(children: Supervisor, name: str, former: int) -> None:
    async with asyncio.timeout(SECONDS):
        while children.pid(name) == former or not children.roster[name].ready.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_log_that_cannot_be_opened_blocks_no_process(
    children: Supervisor, home: Home, said: "asyncio.Queue[str]"
) -> None:
    (home.logs / "n1.log").mkdir()
    chatty = "print('x' * 1_000_000, flush=True)\n" + SERVES
    async with asyncio.timeout(SECONDS):
        await children._start(Service("nodes", program("n1", chatty)))


async def test_an_error_of_our_own_in_a_keeper_is_seen(children: Supervisor) -> None:
    await children._start(Service("nodes", program("n1", SERVES)))

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    children._say = broken
    children.roster["n1"].send(signal.SIGKILL)
    async with asyncio.timeout(SECONDS):
        assert isinstance(await children.failure, ZeroDivisionError)


# ---- signs of life


async def test_a_frozen_process_is_replaced(
    children: Supervisor, said: "asyncio.Queue[str]"
) -> None:
    children._freeze_watch._frozen_seconds = 2.5
    await children._start(Service("nodes", beating("n1")))
    first = children.pid("n1")
    children.roster["n1"].send(signal.SIGSTOP)
    await heard(said, "n1 gives no sign of life")
    assert (await heard(said, "n1 ended")).startswith("n1 ended (SIGKILL)")
    await heard(said, "n1 is back")
    assert children.pid("n1") != first


async def test_a_process_that_freezes_while_it_starts_is_not_waited_for(
    children: Supervisor, said: "asyncio.Queue[str]"
) -> None:
    children._freeze_watch._frozen_seconds = 1.0
    starts = BEATS.replace('print("ready", flush=True)', 'print("loading", flush=True)')
    spec = dataclasses.replace(beating("n1"), command=[sys.executable, "-c", starts])
    starting = asyncio.create_task(children._start(Service("nodes", spec)))
    async with asyncio.timeout(SECONDS):
        while not children.roster.records()[1:]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        while children.roster["n1"].last_sign is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        children.roster["n1"].send(signal.SIGSTOP)
        with pytest.raises(CliError, match="n1 did not start: "):
            await starting
    assert await heard(said, "n1 gives no sign of life")


async def test_whatever_fails_in_a_replacement_the_process_is_kept(
    children: Supervisor, said: "asyncio.Queue[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    await children._start(Service("nodes", program("n1", SERVES)))
    await children.start_api(program("api", SERVES))

    async def fails(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(children, "_until_serves", fails)
        with pytest.raises(ZeroDivisionError):
            await children.replace("n1")
        with pytest.raises(ZeroDivisionError):
            await children.hand_over("api", grace=SECONDS)
    for name in ("n1", "api"):
        children.roster[name].send(signal.SIGKILL)
        await heard(said, f"{name} is back")


async def test_a_dead_event_loop_says_where_it_is_and_is_replaced(
    children: Supervisor, home: Home, said: "asyncio.Queue[str]"
) -> None:
    children._freeze_watch._frozen_seconds = 2.5
    stuck = BEATS.replace(
        "    await beats\n", "    await asyncio.sleep(1)\n    computes_for_ever()\n"
    )
    stuck = "def computes_for_ever():\n    while True: pass\n" + stuck
    await children._start(
        Service("nodes", dataclasses.replace(beating("n1"), command=[sys.executable, "-c", stuck]))
    )
    await heard(said, "n1 gives no sign of life")
    await heard(said, "n1 ended (SIGKILL)")
    assert "in computes_for_ever" in (home.logs / "n1.log").read_text()


async def test_what_does_not_answer_is_replaced(
    children: Supervisor, said: "asyncio.Queue[str]"
) -> None:
    children._freeze_watch._frozen_seconds = 2.0
    alive = asyncio.Event()
    alive.set()

    async def answers() -> bool:
        return alive.is_set()

    await children._start(Service("broker", program("broker", SERVES), answers=answers))
    await asyncio.sleep(0.1)
    alive.clear()
    await heard(said, "broker gives no sign of life")
    alive.set()
    await heard(said, "broker is back")


async def test_a_short_program_that_does_not_end_is_named_and_ended(children: Supervisor) -> None:
    """A start must not wait for ever, and says meanwhile what it waits for."""
    endless = Spec("migrate", [sys.executable, "-S", "-E", "-c", "import signal; signal.pause()"])
    running = asyncio.create_task(children.run_once(endless, within=0.5))
    async with asyncio.timeout(SECONDS):
        while not children.roster.awaited:  # noqa: ASYNC110 - a start tells no event
            await asyncio.sleep(0.01)
    assert children.roster.awaited == ["migrate"]
    with pytest.raises(ProcessError, match="migrate has not ended after"):
        await running
    assert children.roster.awaited == []
