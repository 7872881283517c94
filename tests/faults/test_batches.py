"""Batches and stored jobs, whatever is killed in the middle: one result each, none lost."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.table import Row
from tests.instance import Instance, running

CHAT = "/v1/chat/completions"
OPTIONS = ["--engine", "echo", "--nodes", "2", "--slots", "8", "--token-delay", "0.05"]
SOON = 30.0  # an API process is there again
DONE = 180.0  # a batch has ended
LINES = 600
LONG = " ".join(f"word{number}" for number in range(120))  # an answer of 6 s

Record = Callable[[Row], None]

pytestmark = pytest.mark.timeout(420)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home, in which instances may follow each other."""
    return tmp_path_factory.mktemp("batches") / "home"


@pytest.fixture
def instance(home: Path) -> Iterator[Instance]:
    """root -> (n1, n2), eight slots a node, twenty words a second."""
    with running(home, *OPTIONS) as instance:
        yield instance


def persistent(request: Callable[[], httpx.Response]) -> httpx.Response:
    """The answer to a request that is tried again while no process is there."""
    deadline = time.monotonic() + SOON
    while True:
        try:
            answer = request()
            if answer.status_code != 503:
                return answer
        except httpx.TransportError as error:
            assert time.monotonic() < deadline, error
        time.sleep(0.1)


def text(number: int) -> str:
    """What a line asks, which is what it is answered."""
    return f"line{number} says a few words of its own"


def submitted(program: httpx.Client) -> str:
    """A batch of LINES lines."""
    lines = [
        {
            "custom_id": f"id-{number}",
            "method": "POST",
            "url": CHAT,
            "body": {"model": "echo", "messages": [{"role": "user", "content": text(number)}]},
        }
        for number in range(LINES)
    ]
    content = "".join(f"{json.dumps(line)}\n" for line in lines)
    file = program.post(
        "/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}
    )
    assert file.status_code == 200, file.text
    made = program.post(
        "/v1/batches",
        json={
            "input_file_id": file.json()["id"],
            "endpoint": CHAT,
            "completion_window": "24h",
        },
    )
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def job(program: httpx.Client) -> str:
    """A stored job that takes some seconds."""
    body = {"model": "echo", "messages": [{"role": "user", "content": LONG}]}
    made = program.post("/v1/jobs", json={"endpoint": CHAT, "body": body})
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def when(program: httpx.Client, path: str, holds: Callable[[Any], bool]) -> Any:
    """What is at that address, once that is so."""
    deadline = time.monotonic() + DONE
    while True:
        now = persistent(lambda: program.get(path)).json()
        if holds(now):
            return now
        assert time.monotonic() < deadline, now
        time.sleep(0.1)


def progress(program: httpx.Client, batch: str, lines: int) -> None:
    """Returns when so many lines have a result."""
    when(program, f"/v1/batches/{batch}", lambda now: now["request_counts"]["completed"] >= lines)


def end(instance: Instance, name: str, number: signal.Signals) -> None:
    """Ends a process of the instance as the signal does."""
    processes = instance.record()["processes"]
    os.kill(next(each["pid"] for each in processes if each["name"] == name), number)


def assert_one_result_each(program: httpx.Client, batch: str) -> None:
    """Each line's result is there, once, and its own."""
    done = when(program, f"/v1/batches/{batch}", lambda now: now["status"] == "completed")
    assert done["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    assert done["error_file_id"] is None
    content = persistent(lambda: program.get(f"/v1/files/{done['output_file_id']}/content"))
    results = [json.loads(line) for line in content.text.splitlines()]
    said = [
        (each["custom_id"], each["response"]["body"]["choices"][0]["message"]["content"])
        for each in results
    ]
    assert said == [(f"id-{number}", text(number)) for number in range(LINES)]


def assert_answered(program: httpx.Client, stored: str) -> None:
    """The job has its whole answer."""
    done = when(
        program, f"/v1/jobs/{stored}", lambda now: now["status"] not in ("queued", "running")
    )
    assert done["status"] == "completed", done
    assert done["result"]["body"]["choices"][0]["message"]["content"] == LONG


def test_api_and_nodes_are_killed_in_the_middle(instance: Instance, record: Record) -> None:
    with instance.program(instance.key()) as program:
        batch, stored = submitted(program), job(program)
        for at, name in enumerate(("api", "n1", "api", "root"), start=1):
            progress(program, batch, at * LINES // 8)
            end(instance, name, signal.SIGKILL)
        assert_one_result_each(program, batch)
        assert_answered(program, stored)
    record(Row("SIGKILL", "API, node, API, root in a batch", LINES + 1, LINES + 1, 0, 0, 0))


def test_everything_is_restarted(home: Path, record: Record) -> None:
    with running(home, *OPTIONS) as instance, instance.program(instance.key()) as program:
        batch, stored = submitted(program), job(program)
        progress(program, batch, LINES // 8)
    with running(home, *OPTIONS) as instance, instance.program(instance.key()) as program:
        assert_one_result_each(program, batch)
        assert_answered(program, stored)
    record(Row("restart", "everything, in a batch", LINES + 1, LINES + 1, 0, 0, 0))
