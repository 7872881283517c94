"""The broker of an instance dies: its launcher starts it again, and nothing else."""

import os
import signal
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.instance import Instance, running

SECONDS = 90.0

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with running(tmp_path_factory.mktemp("home"), "--engine", "echo", "--nodes", "2") as instance:
        yield instance


def pids(instance: Instance) -> dict[str, int]:
    return {each["name"]: each["pid"] for each in instance.record()["processes"]}


def ask(program: httpx.Client) -> httpx.Response:
    messages = [{"role": "user", "content": "are you there"}]
    return program.post(
        "/v1/chat/completions", json={"model": "echo", "max_tokens": 3, "messages": messages}
    )


@pytest.mark.parametrize("victim", ["broker", "epmd"])
def test_what_dies_of_the_broker_comes_back_alone(instance: Instance, victim: str) -> None:
    before = pids(instance)
    with instance.program(instance.key()) as program:
        assert ask(program).status_code == 200
        os.kill(before[victim], signal.SIGKILL)
        until_back(instance, victim)
        until_ready(program)
        answer = ask(program)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "are you there"
    after = pids(instance)
    assert {name for name in before if after[name] != before[name]} == {victim}
    assert all(psutil.pid_exists(pid) for pid in after.values())


def until_back(instance: Instance, name: str) -> None:
    """The launcher says so."""
    deadline = time.monotonic() + SECONDS
    while f"  {name} is back\n" not in (said := (instance.home / "up.log").read_text()):
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


def until_ready(program: httpx.Client) -> None:
    """The API has reconnected by itself, and the nodes with it."""
    deadline = time.monotonic() + SECONDS
    while not (answer := program.get("/readyz")).is_success:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
