"""A first real answer: the default model on two nodes, as a plain `./canopy up` serves it.

The model is converted once per machine, into var/models or the folder in CANOPY_TEST_MODELS.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.home import REPOSITORY
from tests.instance import MODEL_SECONDS, Instance, Tree, at_rest, running, tree_when

pytestmark = pytest.mark.timeout(300)  # the first time, the model is converted on the way
MODEL = "smollm2-135m-instruct"
TALE = "Once upon a time"
TREES = "Some emoji: 🌳🌲🌴🌳🌲🌴🌳🌲🌴🌳🌲"  # three tokens each, none of them a whole character


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """An instance with a home of its own whose models are the machine's."""
    home = tmp_path_factory.mktemp("smollm2")
    models = Path(os.environ.get("CANOPY_TEST_MODELS") or REPOSITORY / "var" / "models")
    models.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(models.resolve())
    with running(home, within=MODEL_SECONDS) as instance:
        yield instance


@pytest.fixture(scope="module")
def ask(smollm2: Instance) -> Iterator[httpx.Client]:
    """A program with an API key."""
    with smollm2.program(smollm2.key()) as client:
        yield client


@pytest.fixture(scope="module")
def watch(smollm2: Instance) -> Iterator[httpx.Client]:
    """The administrator."""
    with smollm2.session(smollm2.token) as client:
        yield client


def completion(ask: httpx.Client, prompt: str, **options: Any) -> dict[str, Any]:
    """The whole answer to /v1/completions; greedy and short unless the options say otherwise."""
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 8, **options}
    answer = ask.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def text_of(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["text"]


def reason_of(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["finish_reason"]


@pytest.mark.parametrize(
    ("prompt", "fact"),
    [
        ("The capital of France is the city of", "Paris"),
        ("Berlin is the capital of", "German"),
        ("The opposite of hot is", "cold"),
    ],
)
def test_a_greedy_answer_is_right(ask: httpx.Client, prompt: str, fact: str) -> None:
    assert fact in text_of(completion(ask, prompt))


def test_a_question_is_answered(ask: httpx.Client) -> None:
    answer = chat(ask, "What is the capital of France?", max_tokens=24)
    assert "Paris" in answer["message"]["content"]
    assert answer["finish_reason"] == "stop", "the model's own end of turn ends the answer"


def test_a_question_about_code_is_answered_with_a_code_block(ask: httpx.Client) -> None:
    question = "Write a Python function that merges two sorted lists"
    answer = chat(ask, question, max_tokens=40)
    assert "```python\ndef " in answer["message"]["content"]


SHORT = {"temperature": 0, "max_tokens": 24}  # answers of conversations


def begin(watch: httpx.Client, **fields: Any) -> str:
    """The address of a new conversation that gets short greedy answers."""
    conversation = watch.post("/api/conversations", json=fields).json()
    home = f"/api/conversations/{conversation['id']}"
    assert watch.put(f"{home}/preferences", json=SHORT).is_success
    return home


def test_the_model_gives_a_conversation_its_title(watch: httpx.Client) -> None:
    home = begin(watch)
    untitled = watch.get(home).json()
    with watch.stream("GET", "/api/events") as events:
        question = {"content": "What is the capital of France?"}
        assert watch.post(f"{home}/messages", json=question).is_success
        for line in events.iter_lines():
            title = changed_title(line, untitled["id"])
            if title not in (None, untitled["title"], question["content"]):
                break
    assert "France" in str(title)


def changed_title(line: str, conversation: int) -> str | None:
    """The conversation's title, if the line of the event stream tells it."""
    if not line.startswith('data: {"change"'):
        return None
    changed = json.loads(line.removeprefix("data: "))["conversation"]
    return changed["title"] if changed["id"] == conversation else None


def test_a_temporary_chat_is_answered_and_leaves_nothing(watch: httpx.Client) -> None:
    home = begin(watch, temporary=True)
    turn = watch.post(f"{home}/messages", json={"content": "What is the capital of France?"}).json()
    number = turn["assistant_message"]["id"]
    assert "event: done" in watch.get(f"{home}/messages/{number}/stream").text
    conversation = watch.get(home).json()
    assert "Paris" in conversation["messages"][-1]["content"]
    listed = watch.get("/api/conversations").json()["conversations"]
    assert conversation["id"] not in [each["id"] for each in listed]
    assert watch.delete(home).status_code == 204
    assert watch.get(home).status_code == 404


def chat(ask: httpx.Client, question: str, max_tokens: int) -> dict[str, Any]:
    """The greedy choice of /v1/chat/completions."""
    messages = [{"role": "user", "content": question}]
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
    return ask.post("/v1/chat/completions", json=body).json()["choices"][0]


def test_tokens_arrive_one_by_one(ask: httpx.Client) -> None:
    """Each in an event of its own."""
    arrived = streamed(ask, TALE, max_tokens=20)
    assert len(arrived) >= 16
    assert "".join(arrived) == text_of(completion(ask, TALE, max_tokens=20))


def streamed(ask: httpx.Client, prompt: str, max_tokens: int) -> list[str]:
    """A greedy answer's pieces."""
    body = {
        "model": MODEL,
        "prompt": prompt,
        "temperature": 0,
        "max_tokens": max_tokens,
        "stream": True,
    }
    arrived = []
    with ask.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {") and (
                piece := text_of(json.loads(line.removeprefix("data: ")))
            ):
                arrived.append(piece)
    return arrived


@pytest.mark.parametrize("max_tokens", [12, 10])
def test_a_character_of_three_tokens_comes_whole_or_not_at_all(
    ask: httpx.Client, max_tokens: int
) -> None:
    pieces = streamed(ask, TREES, max_tokens)
    assert all(set(piece) <= set("🌳🌲") for piece in pieces), pieces
    assert "".join(pieces) == "🌳🌲🌳🌲"[: max_tokens // 3]


def test_the_same_seed_says_the_same(ask: httpx.Client) -> None:
    texts = [
        text_of(completion(ask, TALE, temperature=1, seed=seed, max_tokens=12))
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_string_ends_the_text_before_it(ask: httpx.Client) -> None:
    answer = completion(ask, "Count: 1, 2, 3, 4,", max_tokens=40, stop=["9"])
    assert text_of(answer).rstrip(", ").endswith("8")
    assert reason_of(answer) == "stop"


def test_the_limit_of_tokens_is_kept(ask: httpx.Client) -> None:
    answer = completion(ask, TALE, max_tokens=5)
    usage = answer["usage"]
    usage.pop("prompt_tokens_details", None)  # the prefix cache may have it from another test
    assert usage == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
    assert reason_of(answer) == "length"


@pytest.mark.parametrize(
    ("path", "field", "asked"),
    [
        ("/v1/completions", "prompt", {"prompt": "word " * 40_000}),
        (
            "/v1/chat/completions",
            "messages",
            {"messages": [{"role": "user", "content": "word " * 40_000}]},
        ),
    ],
)
@pytest.mark.parametrize("options", [{}, {"max_tokens": 5}])
def test_a_prompt_that_is_too_long_is_refused(
    ask: httpx.Client, path: str, field: str, asked: dict[str, Any], options: dict[str, Any]
) -> None:
    refused = ask.post(path, json={"model": MODEL, **asked, **options})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == field
    assert error["code"] == "context_length_exceeded"
    assert re.search(r"has more than \d+ tokens; this node reads at most \d+", error["message"])


def test_ten_hellos_at_once_are_answered_by_both_nodes(
    ask: httpx.Client, watch: httpx.Client
) -> None:
    now = time.time()  # what ended a moment ago may not have been told yet
    before = finished(tree_when(watch, lambda tree: at_rest(tree) and heard_since(tree, now)))

    def hello(number: int) -> httpx.Response:
        return ask.post(
            "/arranca/", json={"text": "Hello", "timestamp": number, "max_tokens": 16}, timeout=120
        )

    with ThreadPoolExecutor(10) as callers:
        answers = list(callers.map(hello, range(10)))
    assert [answer.status_code for answer in answers] == [200] * 10
    bodies = [answer.json() for answer in answers]
    assert [body["timestamp"] for body in bodies] == list(range(10))
    assert all(body["text"].strip() for body in bodies)
    assert len({body["request_id"] for body in bodies}) == 10

    after = finished(
        tree_when(watch, lambda tree: at_rest(tree) and sum(finished(tree).values()) >= 10)
    )
    worked = {name: after[name] - before[name] for name in after}
    assert sum(worked.values()) == 10
    assert min(worked.values()) >= 3, f"both must work: {worked}"


def heard_since(tree: Tree, moment: float) -> bool:
    """Whether every node has told its state after that Unix time. `seen` is rounded to a tenth."""
    drawn = datetime.fromisoformat(tree["at"]).timestamp()
    return all(
        node["seen"] is not None and drawn - node["seen"] - 0.1 > moment for node in tree["nodes"]
    )


def finished(tree: Tree) -> dict[str, int]:
    """How many jobs each node has ended; the root runs none."""
    return {node["name"]: node["finished"] for node in tree["nodes"] if node["slots"]}
