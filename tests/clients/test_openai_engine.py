"""One Canopy before another: nodes with the openai engine call a second instance's API."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.instance import Instance, Tree, at_rest, free_port, jobs, running, total, tree_when
from tests.realbroker import NodeProcess, root

CHAT = "/v1/chat/completions"
SLOTS = 4
LONG = 5000  # words: nearly a minute, so whoever sees it end sooner has ended it
FAR = ["--engine", "echo", "--nodes", "1", "--slots", "50", "--token-delay", "0.01"]


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """The other instance: root -> n1, a hundred words a second."""
    with running(tmp_path_factory.mktemp("far"), *FAR) as instance:
        yield instance


@pytest.fixture(scope="module")
def far_key(far: Instance) -> str:
    return far.key()


@pytest.fixture(scope="module")
def far_staff(far: Instance) -> Iterator[httpx.Client]:
    with far.session(far.token) as client:
        yield client


@pytest.fixture(scope="module")
def relay_root(service: Instance) -> Iterator[None]:
    """The entrance of a tree whose nodes stand before other servers."""
    with root(service.broker, "relay-root", "relay"):
        yield


@pytest.fixture(scope="module")
def relay(
    service: Instance, relay_root: None, far: Instance, far_key: str
) -> Iterator[NodeProcess]:
    with relay_node(service, "relay-1", far.url, far_key) as node:
        yield node


def relay_node(service: Instance, name: str, url: str, key: str) -> NodeProcess:
    """A node before the server at `url`."""
    options = [
        "--parent",
        "relay-root",
        "--model",
        "relay",
        "--engine",
        "openai",
        "--slots",
        str(SLOTS),
    ]
    env = {"CANOPY_UPSTREAM_KEY": key}
    return NodeProcess(
        service.broker, name, *options, "--upstream", f"{url}/v1", "--wait", "20", env=env
    )


def asking(model: str, text: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def streamed(lines: Iterator[str]) -> tuple[list[str], str | None, dict[str, int]]:
    """The pieces of a chat stream with its usage, why it ended, and the usage."""
    pieces, reason, usage = [], None, {}
    for line in lines:
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                pieces.append(choice["delta"].get("content") or "")
                reason = choice["finish_reason"] or reason
    return [piece for piece in pieces if piece], reason, usage


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_tokens": 3},
        {"max_tokens": 9, "top_k": 5, "top_p": 0.5, "temperature": 0.3, "seed": 2**62},
        {"stop": ["must"]},
    ],
)
def test_the_answer_is_the_far_ones(
    program: httpx.Client, relay: NodeProcess, far: Instance, far_key: str, settings: dict[str, Any]
) -> None:
    question = "what goes up 東京 must come down"
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    with far.program(far_key) as there:
        expected = there.post(CHAT, json=asking("echo", question, **settings)).json()
        direct = there.post(
            "/v1/completions", json={"model": "echo", "prompt": question, **settings}
        ).json()
    with program.stream(
        "POST", CHAT, json=asking("relay", question, **streaming, **settings)
    ) as answer:
        pieces, reason, usage = streamed(answer.iter_lines())
    (choice,) = expected["choices"]
    assert "".join(pieces) == choice["message"]["content"]
    assert len(pieces) > 1
    assert reason == choice["finish_reason"]
    assert usage == expected["usage"]
    prompted = program.post(
        "/v1/completions", json={"model": "relay", "prompt": question, **settings}
    ).json()
    assert prompted["choices"][0]["text"] == direct["choices"][0]["text"]
    assert prompted["usage"] == direct["usage"]


def test_tools_are_passed_on(program: httpx.Client, relay: NodeProcess) -> None:
    function = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}}
    tools = {"tools": [{"type": "function", "function": function}]}
    question = 'call weather {"city": "Rome"}'
    answer = program.post(CHAT, json=asking("relay", question, **tools)).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    turns = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "rain today"},
    ]
    body = {"model": "relay", "messages": turns, **tools}
    (choice,) = program.post(CHAT, json=body).json()["choices"]
    assert "rain today" in choice["message"]["content"]


def test_a_cancel_reaches_the_far_node(
    program: httpx.Client, staff: httpx.Client, relay: NodeProcess, far_staff: httpx.Client
) -> None:
    with jobs(program, 2, LONG, "relay"):
        tree_when(far_staff, lambda tree: total(tree, "running") == 2)
    tree_when(far_staff, at_rest)
    tree_when(staff, at_rest)


def test_no_more_requests_than_slots(
    program: httpx.Client, staff: httpx.Client, relay: NodeProcess, far_staff: httpx.Client
) -> None:
    with jobs(program, 3 * SLOTS, LONG, "relay"):
        tree_when(staff, lambda tree: total(tree, "queued") == 2 * SLOTS)
        tree = tree_when(far_staff, lambda tree: total(tree, "running") == SLOTS)
        assert total(tree, "queued") == 0
    tree_when(far_staff, at_rest)
    tree_when(staff, at_rest)


def test_many_at_once_get_each_their_own(service: Instance, key: str, relay: NodeProcess) -> None:
    questions = [f"number {number} says {number * number} times" for number in range(30)]

    async def ask_all() -> list[str]:
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=service.url, timeout=60, headers=headers) as client:
            answers = await asyncio.gather(
                *(client.post(CHAT, json=asking("relay", text)) for text in questions)
            )
        return [answer.json()["choices"][0]["message"]["content"] for answer in answers]

    assert asyncio.run(ask_all()) == questions


def test_another_node_goes_on_where_a_killed_one_stopped(
    service: Instance,
    program: httpx.Client,
    staff: httpx.Client,
    relay: NodeProcess,
    far: Instance,
    far_key: str,
) -> None:
    question = " ".join(f"word{number}" for number in range(300))
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    with ExitStack() as stack:
        stack.enter_context(held_back(staff, "relay-1"))
        victim = stack.enter_context(relay_node(service, "relay-2", far.url, far_key))
        answer = stack.enter_context(
            program.stream("POST", CHAT, json=asking("relay", question, **streaming))
        )
        lines = answer.iter_lines()
        begun = streamed(iter([next(line for line in lines if "word20" in line)]))[0]
        victim.process.kill()
        staff.post("/api/tree/nodes/relay-1/resume").raise_for_status()
        pieces, reason, usage = streamed(lines)
    assert question.endswith("".join([*begun, *pieces]))
    assert reason == "stop"
    assert usage["completion_tokens"] == 300


def held_back(staff: httpx.Client, name: str) -> ExitStack:
    """That node takes no jobs for a while."""
    staff.post(f"/api/tree/nodes/{name}/drain").raise_for_status()
    tree_when(
        staff,
        lambda tree: any(n["name"] == name and n["state"] == "drained" for n in tree["nodes"]),
    )
    stack = ExitStack()
    stack.callback(lambda: staff.post(f"/api/tree/nodes/{name}/resume"))
    return stack


def test_a_far_instance_that_comes_back_gets_the_answer_to_its_end(
    service: Instance,
    program: httpx.Client,
    staff: httpx.Client,
    relay: NodeProcess,
    tmp_path: Path,
) -> None:
    """While it is away the node says so, and the job waits here."""
    options = [*FAR, "--port", str(free_port())]
    question = " ".join(f"word{number}" for number in range(300))
    with ExitStack() as nodes, ExitStack() as answers:
        with running(tmp_path / "far", *options) as instance:
            nodes.enter_context(held_back(staff, "relay-1"))
            nodes.enter_context(relay_node(service, "relay-3", instance.url, instance.key()))
            answer = answers.enter_context(
                program.stream("POST", CHAT, json=asking("relay", question, stream=True))
            )
            lines = answer.iter_lines()
            begun = streamed(iter([next(line for line in lines if "word20" in line)]))[0]
        failed = tree_when(
            staff, lambda tree: "cannot be reached" in node_of(tree, "relay-3")["detail"]
        )
        assert node_of(failed, "relay-3")["state"] == "failed"
        with running(tmp_path / "far", *options):
            pieces, reason, _ = streamed(lines)
            assert question.endswith("".join([*begun, *pieces]))
            assert reason == "stop"
    tree_when(staff, at_rest)


def node_of(tree: Tree, name: str) -> dict[str, Any]:
    """One node's line in the tree."""
    return next(
        (node for node in tree["nodes"] if node["name"] == name), {"state": "", "detail": ""}
    )


def test_up_stands_before_the_other_instance_and_keeps_its_key_to_itself(
    far: Instance, far_key: str, tmp_path: Path
) -> None:
    options = [
        "--engine",
        "openai",
        "--upstream",
        f"{far.url}/v1",
        "--upstream-model",
        "echo",
        "--model",
        "relay",
    ]
    with running(
        tmp_path / "near", *options, "--nodes", "1", env={"CANOPY_UPSTREAM_KEY": far_key}
    ) as near:
        with near.program(near.key()) as program:
            answer = program.post(CHAT, json=asking("relay", "there and back")).json()
        processes = [psutil.Process(each["pid"]) for each in near.record()["processes"]]
        assert not any(far_key in " ".join(process.cmdline()) for process in processes)
        said = "".join(log.read_text() for log in (tmp_path / "near" / "logs").glob("*.log"))
    assert answer["choices"][0]["message"]["content"] == "there and back"
    assert "server found" in said
    assert far_key not in said


def test_a_node_before_nobody_does_not_start(service: Instance, relay_root: None) -> None:
    node = relay_node(service, "relay-4", f"http://127.0.0.1:{free_port()}", "")
    assert node.wait_exit(30) == 3
    assert "cannot be reached" in node.lines[-1]
