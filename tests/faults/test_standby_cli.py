"""The root dies, a standby becomes the root, and what died comes back as a standby."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.instance import Instance, running, tree_when

SECONDS = 60.0

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    with running(
        tmp_path / "home", "--engine", "echo", "--nodes", "1", "--standby", "1"
    ) as instance:
        yield instance


def pids(instance: Instance) -> dict[str, int]:
    return {each["name"]: each["pid"] for each in instance.record()["processes"]}


def ask(program: httpx.Client) -> str:
    messages = [{"role": "user", "content": "who is root"}]
    answer = program.post(
        "/v1/chat/completions", json={"model": "echo", "max_tokens": 3, "messages": messages}
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def root_pid(instance: Instance, among: set[int], staff: httpx.Client) -> int:
    """The process that is the root, once it is one of those and serves."""

    def found(tree: dict[str, list[dict[str, object]]]) -> bool:
        return any(node["name"] == "root" and node["pid"] in among for node in tree["nodes"])

    (root,) = [node for node in tree_when(staff, found, SECONDS)["nodes"] if node["name"] == "root"]
    return int(root["pid"])


def test_the_standby_takes_over_and_the_dead_one_stands_by(instance: Instance) -> None:
    before = pids(instance)
    roots = {name: before[name] for name in ("root", "root-standby-1")}
    with instance.session(instance.token) as staff, instance.program(instance.key()) as program:
        assert ask(program) == "who is root"
        first = root_pid(instance, set(roots.values()), staff)
        (dead, heir) = sorted(roots, key=lambda name: roots[name] != first)
        os.kill(first, signal.SIGKILL)
        assert ask(program) == "who is root"
        assert root_pid(instance, {roots[heir]}, staff) == roots[heir]
        until(lambda: f"  {dead} is back\n" in (instance.home / "up.log").read_text())
        assert ask(program) == "who is root"
        after = pids(instance)
        assert {name for name in before if after[name] != before[name]} == {dead}
        assert root_pid(instance, {roots[heir]}, staff) == roots[heir], "the heir keeps the name"

        said = instance.canopy("restart", "--rolling")
        assert "replaced 4 processes" in said
        assert ask(program) == "who is root"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
