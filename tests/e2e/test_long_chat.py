"""A chat that outgrows its model goes on with its newest turns, in any script (tiny model)."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.instance import Instance, running
from tests.unit.engine.tiny import save_model

pytestmark = pytest.mark.timeout(300)  # the engine starts on the way
CONTEXT = 512  # tokens of the tiny model; one of its tokens is a byte


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One node with a model of random weights."""
    folder = save_model("llama", tmp_path_factory.mktemp("model") / "tiny")
    options = ["--model", str(folder), "--nodes", "1", "--slots", "2", "--device", "cpu"]
    with running(tmp_path_factory.mktemp("long-chat"), *options) as instance:
        yield instance


@pytest.fixture
def reader(tiny: Instance) -> Iterator[httpx.Client]:
    with tiny.session(tiny.login_token()) as client:
        yield client


def ask(reader: httpx.Client, home: str, content: str) -> tuple[str, dict[str, Any]]:
    """The answer's last event."""
    turn = reader.post(f"{home}/messages", json={"content": content})
    return last_event(reader, home, turn)


def last_event(reader: httpx.Client, home: str, turn: httpx.Response) -> tuple[str, dict[str, Any]]:
    """Of the answer that the turn began."""
    assert turn.status_code == 201, turn.text
    stream = reader.get(f"{home}/messages/{turn.json()['assistant_message']['id']}/stream")
    name, data = stream.text.rstrip().split("\n\n")[-1].split("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


@pytest.mark.parametrize("content", ["What comes after this? " * 4, "这之后会发生什么？" * 4])
def test_a_long_chat_goes_on(reader: httpx.Client, content: str) -> None:
    home = f"/api/conversations/{reader.post('/api/conversations', json={}).json()['id']}"
    for _ in range(6):
        name, end = ask(reader, home, content)
        assert name == "done", end
    conversation = reader.get(home).json()
    numbers = [message["id"] for message in conversation["messages"]]
    assert end["seen_from"] == conversation["seen_from"]
    assert conversation["seen_from"] in numbers[1:]
    seen = conversation["messages"][numbers.index(conversation["seen_from"]) : -1]
    assert seen[0]["role"] == seen[-1]["role"] == "user"
    assert sum(len(message["content"].encode()) for message in seen) < CONTEXT


def test_a_message_that_alone_is_too_long_stops_only_itself(reader: httpx.Client) -> None:
    home = f"/api/conversations/{reader.post('/api/conversations', json={}).json()['id']}"
    assert ask(reader, home, "hello")[0] == "done"
    name, end = ask(reader, home, "x" * 2 * CONTEXT)
    assert name == "failed"
    assert str(CONTEXT - 1) in end["message"]  # an answer has at least one token
    assert ask(reader, home, "in short")[0] == "done"


def test_an_answer_at_the_end_of_the_context_goes_on(reader: httpx.Client) -> None:
    """Older messages give way to it, until its own question is all that is left."""
    home = f"/api/conversations/{reader.post('/api/conversations', json={}).json()['id']}"
    style = {"temperature": 0, "instructions": "Go on.", "max_tokens": 40}
    assert reader.put(f"{home}/preferences", json=style).is_success
    for _ in range(4):
        name, end = ask(reader, home, "What comes after this? " * 3)
    sizes = [0]
    seen: list[int | None] = []
    while len(end["answer"]["content"]) > sizes[-1]:
        assert (name, end["finish_reason"]) == ("done", "length"), end
        sizes.append(len(end["answer"]["content"]))
        seen.append(end["seen_from"])
        turn = reader.post(f"{home}/messages/{end['answer']['id']}/continue")
        name, end = last_event(reader, home, turn)
    assert len(set(seen)) > 2, "older messages give way step by step"
    assert end["seen_from"] == end["answer"]["parent"]
    assert end["answer"]["prompt_tokens"] + sizes[-1] >= CONTEXT - 1


def test_the_context_is_told(tiny: Instance, reader: httpx.Client) -> None:
    with tiny.program(tiny.key()) as program:
        [model] = program.get("/v1/models").json()["data"]
        assert (model["context_length"], model["max_model_len"]) == (CONTEXT, CONTEXT)
        messages = [{"role": "user", "content": "x" * 300}] * 3
        refused = program.post(
            "/v1/chat/completions", json={"model": model["id"], "messages": messages}
        )
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
