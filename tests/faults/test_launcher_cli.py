"""What must not stop the launcher: a full disk, an output that is closed, processes that freeze."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.disk import fill, small_disk
from tests.faults.table import Row
from tests.instance import LAUNCHER, Instance, environment, finish, free_port, running

SECONDS = 120.0
FROZEN_SECONDS = 5  # the shortest limit
PROCESSES = ("epmd", "broker", "root", "n1", "n2", "api")

pytestmark = pytest.mark.timeout(300)


def pids(instance: Instance) -> dict[str, int]:
    """The running processes as the launcher recorded them; on a full disk that comes late."""
    processes = instance.record()["processes"]
    return {each["name"]: each["pid"] for each in processes if each["state"] == "running"}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def ready(program: httpx.Client) -> bool:
    try:
        return program.get("/readyz").is_success
    except httpx.HTTPError:
        return False


def ask(program: httpx.Client, text: str = "are you there") -> str:
    messages = [{"role": "user", "content": text}]
    asked = {"model": "echo", "max_tokens": len(text.split()), "messages": messages}
    answer = program.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def answers(program: httpx.Client) -> bool:
    """Whether a question is answered; the service may say that it cannot yet."""
    asked = {"model": "echo", "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]}
    try:
        answer = program.post("/v1/chat/completions", json=asked)
    except httpx.HTTPError:
        return False
    assert answer.status_code in (200, 503), answer.text
    return answer.is_success


def until_replaced(instance: Instance, before: dict[str, int], name: str) -> None:
    """The launcher has started another process of that name, and written that down."""

    def replaced() -> bool:
        pid = pids(instance).get(name)
        return pid != before[name] and alive(pid)

    until(replaced, f"{name} is not back")


def alive(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}").exists()


# ---- a full disk


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """On a disk that can be filled."""
    with (
        small_disk(tmp_path_factory.mktemp("cramped") / "disk") as folder,
        running(folder / "home", "--engine", "echo", "--nodes", "2") as instance,
    ):
        yield instance


@pytest.mark.parametrize("victim", ["n1", "root", "broker", "api"])
def test_what_dies_while_the_disk_is_full_is_back_when_it_is_not(
    cramped: Instance, victim: str, record: Callable[[Row], None]
) -> None:
    until(lambda: set(PROCESSES) <= pids(cramped).keys(), "the former victim is not back")
    before = pids(cramped)
    with cramped.program(cramped.key()) as program:
        ballast = fill(cramped.home.parent)
        os.kill(before[victim], signal.SIGKILL)
        until(lambda: not alive(before[victim]), "it has been killed")
        time.sleep(3)  # the launcher has tried, and its records and logs could not be written
        ballast.unlink()
        freed = time.monotonic()
        until_replaced(cramped, before, victim)
        # The broker looks at its disk every few seconds, and takes no jobs until then (503).
        until(lambda: answers(program), "no answer")
    record(Row("full disk", victim, 1, 1, 0, 0, 0, (time.monotonic() - freed,)))
    assert json.loads(cramped.canopy("status", "--json"))["running"]


# ---- a closed output


def test_a_closed_standard_error_does_not_stop_the_restarts(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    command = 'exec "$@" 2> >(head -2 > /dev/null)'
    words = [sys.executable, str(LAUNCHER), "up", "--engine", "echo", "--port", str(free_port())]
    launcher = subprocess.Popen(
        ["bash", "-c", command, "bash", *words],
        env=environment(home),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert launcher.stdout
        link = launcher.stdout.readline().removeprefix("Canopy is ready: ").strip()
        instance = Instance(home, link)
        for victim in ("n1", "root", "n1"):
            before = pids(instance)
            os.kill(before[victim], signal.SIGKILL)
            until_replaced(instance, before, victim)
        with instance.program(instance.key()) as program:
            assert ask(program) == "are you there"
    finally:
        assert finish(launcher) == 0


# ---- frozen processes


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    home = tmp_path_factory.mktemp("watched") / "home"
    options = (
        "--engine",
        "echo",
        "--nodes",
        "2",
        "--slots",
        "2",
        "--token-delay",
        "0.1",
        "--api-processes",
        "2",
    )
    with running(home, *options, env={"CANOPY_FROZEN_SECONDS": str(FROZEN_SECONDS)}) as instance:
        yield instance


@pytest.mark.parametrize("victim", ["n1", "root", "broker", "epmd", "api-2", "api"])
def test_a_frozen_process_is_replaced_and_no_job_is_lost(
    watched: Instance, victim: str, record: Callable[[Row], None]
) -> None:
    before = pids(watched)
    text = " ".join(f"word{number}" for number in range(60))
    texts: list[str] = []
    with watched.program(watched.key()) as program:
        until(lambda: ready(program), "not ready")
        askers = []
        if not victim.startswith("api"):  # what a frozen API process has accepted is lost with it
            askers = [
                threading.Thread(target=lambda: texts.append(ask(program, text))) for _ in range(3)
            ]
        for asker in askers:
            asker.start()
        time.sleep(1)
        os.kill(before[victim], signal.SIGSTOP)
        frozen = time.monotonic()
        until_replaced(watched, before, victim)
        for asker in askers:
            asker.join(SECONDS)
        assert texts == [text] * len(askers)
        seconds = time.monotonic() - frozen
        record(Row("frozen", victim, len(askers), len(texts), 0, 0, 0, (seconds,)))
        until(lambda: ready(program), "not ready again")
        assert ask(program) == "are you there"
    now = pids(watched)
    assert {name for name in before if now[name] != before[name]} == {victim}


def test_a_rolling_restart_replaces_every_api_process(watched: Instance) -> None:
    before = pids(watched)
    with watched.program(watched.key()) as program:
        until(lambda: ready(program), "not ready")
        assert "replaced 5 processes" in watched.canopy("restart", "--rolling")
        assert ask(program) == "are you there"
    now = pids(watched)
    replaced = {name for name in before if now[name] != before[name]}
    assert replaced == {"api", "api-2", "n1", "n2", "root"}
