"""The API dies, stops, or is one of two: stored answers end with exactly their text, others are
cancelled.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.faults.table import Row
from tests.instance import (
    Instance,
    Tree,
    environment,
    finish,
    free_port,
    running,
    start,
    total,
    tree_when,
)

WORDS = 120  # an answer takes 6 s
SOON = 30.0  # an API process is there again, and has taken over

Record = Callable[[Row], None]
Events = Iterator[tuple[str, dict[str, Any]]]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """root -> (n1, n2), eight slots a node, twenty words a second."""
    options = ["--engine", "echo", "--nodes", "2", "--slots", "8", "--token-delay", "0.05"]
    with running(tmp_path_factory.mktemp("api") / "home", *options) as instance:
        yield instance


@pytest.fixture
def program(instance: Instance) -> Iterator[httpx.Client]:
    """A program with the administrator's key, who may also look at the tree."""
    with instance.program(instance.key()) as client:
        yield client


@dataclass
class Asked:
    """An answer of the chat; its text is the question's."""

    home: str
    answer: int
    text: str
    read: list[str] = field(default_factory=list)

    @property
    def stream(self) -> str:
        """Where it can be read."""
        return f"{self.home}/messages/{self.answer}/stream"


def words(mark: str) -> str:
    """A text that no other test has, each word of it its own."""
    return " ".join(f"{mark}{number}" for number in range(WORDS))


def ask(program: httpx.Client, mark: str) -> Asked:
    """A question in a new conversation."""
    made = persistent(lambda: program.post("/api/conversations", json={}))
    home = f"/api/conversations/{made.json()['id']}"
    turn = program.post(f"{home}/messages", json={"content": words(mark)})
    assert turn.status_code == 201, turn.text
    return Asked(home, turn.json()["assistant_message"]["id"], words(mark))


def events(response: httpx.Response) -> Events:
    """A chat answer's events."""
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def read_some(of: Events, into: list[str], characters: int = 40) -> None:
    """Reads until there is a little text, which is not the whole."""
    for name, fields in of:
        assert name in ("waiting", "start", "delta")
        into.append(fields.get("text", ""))
        if len("".join(into)) >= characters:
            return


def read_again(program: httpx.Client, chat: Asked) -> tuple[str, dict[str, Any]]:
    """All of the answer, as a reconnecting page reads it; its text and its last event."""
    deadline = time.monotonic() + SOON
    while True:
        text = ""
        try:
            with program.stream("GET", chat.stream) as response:
                assert response.status_code == 200
                for name, fields in events(response):
                    if name == "delta":
                        text += fields["text"]
                    elif name not in ("waiting", "start"):
                        assert name == "done", fields
                        return text, fields
        except httpx.TransportError:
            pass  # the process that was asked is gone
        assert time.monotonic() < deadline, f"the answer did not end; its text so far: {text}"
        time.sleep(0.1)


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


def assert_stored(program: httpx.Client, chat: Asked) -> None:
    """The conversation has the answer, once."""
    messages = persistent(lambda: program.get(chat.home)).json()["messages"]
    assert [each["role"] for each in messages] == ["user", "assistant"]
    answer = messages[1]
    assert (answer["content"], answer["status"], answer["finish_reason"]) == (
        chat.text,
        "done",
        "stop",
    )


def body(mark: str, **changes: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": words(mark)}], **changes}


def pieces(response: httpx.Response) -> Iterator[str]:
    """A streamed completion's text, to its proper end."""
    line = ""
    for line in filter(None, response.iter_lines()):
        if line.startswith("data: {"):
            yield from (
                choice["delta"].get("content", "") for choice in json.loads(line[6:])["choices"]
            )
    assert line == "data: [DONE]"


def completion(program: httpx.Client, fields: dict[str, Any], *, key: str) -> httpx.Request:
    """A request with an Idempotency-Key."""
    return program.build_request(
        "POST", "/v1/chat/completions", json=fields, headers={"Idempotency-Key": key}
    )


def retried(program: httpx.Client, request: httpx.Request, known: int) -> tuple[str, float]:
    """A streamed completion, asked for until it is whole; and when it first exceeded `known`."""
    deadline = time.monotonic() + SOON
    while True:
        text, went_on = "", 0.0
        try:
            answer = persistent(lambda: program.send(request, stream=True))
            assert (answer.status_code, answer.headers.get("Idempotent-Replay")) == (200, "true")
            for piece in pieces(answer):
                text += piece
                if not went_on and len(text) > known:
                    went_on = time.monotonic()
            return text, went_on
        except httpx.TransportError:  # served by a process that was about to stop
            assert time.monotonic() < deadline


@contextmanager
def begun(
    program: httpx.Client, fields: dict[str, Any], **headers: str
) -> Iterator[tuple[httpx.Response, str]]:
    """A streamed completion, and the text that came until there was a little."""
    with program.stream(
        "POST", "/v1/chat/completions", json={**fields, "stream": True}, headers=headers
    ) as response:
        assert response.status_code == 200
        text, coming = "", pieces(response)  # it is kept: dropping it would close the connection
        for piece in coming:
            text += piece
            if len(text) > 40:
                break
        yield response, text


def end_api(instance: Instance, number: signal.Signals) -> None:
    """Ends the API process as the signal does."""
    os.kill(
        next(each["pid"] for each in instance.record()["processes"] if each["name"] == "api"),
        number,
    )


def idle(tree: Tree) -> bool:
    """Every node is there, and nothing runs or waits."""
    return len(tree["nodes"]) == 3 and total(tree, "running") == 0 and total(tree, "queued") == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_stored_is_finished_by_the_next_process(
    instance: Instance, program: httpx.Client, record: Record, number: signal.Signals
) -> None:
    """A chat answer, and two requests with an Idempotency-Key: retried as a stream and whole."""
    mark = number.name.lower()
    chat = ask(program, f"{mark}-chat-")
    streamed, whole = body(f"{mark}-streamed-"), body(f"{mark}-whole-")
    with ExitStack() as stack:
        followed = events(stack.enter_context(program.stream("GET", chat.stream)))
        read_some(followed, chat.read)
        _, first = stack.enter_context(begun(program, streamed, **{"Idempotency-Key": f"{mark} 1"}))
        other, _ = stack.enter_context(begun(program, whole, **{"Idempotency-Key": f"{mark} 2"}))
        end_api(instance, number)
    struck = time.monotonic()

    text, went_on = retried(
        program, completion(program, {**streamed, "stream": True}, key=f"{mark} 1"), len(first)
    )
    assert text == words(f"{mark}-streamed-")
    assert text.startswith(first)

    again = persistent(lambda: program.send(completion(program, whole, key=f"{mark} 2")))
    assert again.headers["X-Request-Id"] == other.headers["X-Request-Id"]
    found = again.json()
    assert found["choices"][0]["message"]["content"] == words(f"{mark}-whole-")
    assert found["usage"]["completion_tokens"] == WORDS

    text, end = read_again(program, chat)
    assert text == chat.text
    assert text.startswith("".join(chat.read))
    assert end.pop("answer")["content"] == chat.text
    assert end == {"finish_reason": "stop", "completion_tokens": WORDS, "seen_from": None}
    assert_stored(program, chat)
    record(Row(number.name, "API, mid-stream", 3, 3, 0, 0, 0, (went_on - struck,)))


def test_a_job_that_nobody_reads_any_more_leaves_the_tree(
    instance: Instance, program: httpx.Client
) -> None:
    with begun(program, body("plain", max_tokens=100_000)):  # an hour
        tree_when(program, lambda tree: total(tree, "running") == 1)
        end_api(instance, signal.SIGKILL)
    persistent(lambda: program.get("/readyz"))
    tree_when(program, idle)


@pytest.fixture
def second(instance: Instance) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of another API process of the same instance."""
    port = free_port()
    env = {
        **environment(instance.home),
        "CANOPY_AMQP_URL": instance.broker.amqp["api"],
        "CANOPY_MODELS": '["echo"]',
    }
    with (instance.home / "second.log").open("w") as log:
        process = start([sys.executable, "-m", "api", "serve", "--port", str(port)], env, log)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        finish(process)


def test_two_processes_share_their_answers(
    instance: Instance,
    program: httpx.Client,
    second: tuple[str, subprocess.Popen[str]],
    record: Record,
) -> None:
    """What one writes the other reads and stops; when one dies the other goes on at once."""
    address, process = second
    with httpx.Client(base_url=address, timeout=60, headers=program.headers) as beside:
        persistent(lambda: beside.get("/readyz"))
        stopped, chat = ask(beside, "stopped-"), ask(beside, "two-")
        with program.stream("GET", stopped.stream) as here:
            followed = events(here)
            read_some(followed, stopped.read)
            assert program.post(f"{stopped.home}/messages/{stopped.answer}/stop").status_code == 204
            *_, (name, fields) = followed
        assert (name, fields["finish_reason"]) == ("done", "cancelled")
        with program.stream("GET", chat.stream) as here:
            followed = events(here)
            read_some(followed, chat.read)
            process.kill()
            process.wait()
            struck = time.monotonic()
            read_some(followed, chat.read, len("".join(chat.read)) + 1)
            went_on = time.monotonic()
            chat.read += [fields.get("text", "") for name, fields in followed if name == "delta"]
    assert "".join(chat.read) == chat.text  # on the same connection: nothing twice, nothing missing
    assert_stored(program, chat)
    record(Row("SIGKILL", "one of two APIs", 1, 1, 0, 0, 0, (went_on - struck,)))
    tree_when(program, idle)
