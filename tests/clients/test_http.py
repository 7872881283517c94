"""Plain HTTP: the original endpoint, refusals, a crowd, and a node that is not there yet."""

import asyncio
import gzip
import json
import resource
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from tests.instance import Instance, at_rest, tree_when
from tests.realbroker import NodeProcess

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
ARRANCA = "/arranca/"
CROWD = 1000


def chat_body(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **more}


def complaint(answer: httpx.Response) -> tuple[str, str | None]:
    """What a refusal says, and which field it blames, in either shape."""
    error = answer.json()["error"]
    return error["message"], error["param"] if "param" in error else error["field"]


def said(line: str) -> str:
    """The piece of text in one line of a chat stream."""
    if not line.startswith("data: {"):
        return ""
    choices = json.loads(line.removeprefix("data: "))["choices"]
    return choices[0]["delta"].get("content") or "" if choices else ""


# ---- the original endpoint


@pytest.mark.parametrize("timestamp", ["2024-05-01T10:00:00Z", 1714557600, 1714557600.25])
def test_arranca_answers_a_session_and_keeps_the_timestamp(
    staff: httpx.Client, timestamp: str | float
) -> None:
    answer = staff.post(ARRANCA, json={"text": "Hello again", "timestamp": timestamp})
    assert answer.status_code == 200
    body = answer.json()
    assert body == {"text": "Hello again", "timestamp": timestamp, "request_id": body["request_id"]}
    assert uuid.UUID(body["request_id"])
    assert answer.headers["X-Request-Id"] == body["request_id"]


def test_arranca_answers_a_key(program: httpx.Client) -> None:
    answer = program.post(ARRANCA, json={"text": "Hello", "timestamp": "now"})
    assert answer.status_code == 200
    assert answer.json()["text"] == "Hello"


def test_arranca_wants_the_csrf_token_of_a_session(service: Instance, staff: httpx.Client) -> None:
    body = {"text": "Hello", "timestamp": "now"}
    with httpx.Client(base_url=service.url, cookies=staff.cookies) as forged:
        assert forged.post(ARRANCA, json=body).status_code == 403
    assert httpx.post(f"{service.url}{ARRANCA}", json=body).status_code == 401
    wrong = httpx.post(
        f"{service.url}{ARRANCA}", json=body, headers={"Authorization": "Bearer canopy_no_key"}
    )
    assert wrong.status_code == 401


# ---- refusals


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, ARRANCA, "/api/conversations"])
@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(b"{not json", "not JSON", id="malformed"),
        pytest.param(b"", "required", id="empty"),
        pytest.param(b'{"text": "\xff\xfe"}', "not UTF-8", id="bytes"),
        pytest.param(b"[" * 5000, "not JSON", id="deep"),
    ],
)
def test_a_body_that_is_not_json_is_blamed(
    program: httpx.Client, path: str, body: bytes, why: str
) -> None:
    answer = program.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    message, field = complaint(answer)
    assert field == "body"
    assert why in message


def test_bodies_may_be_compressed_and_marked(program: httpx.Client) -> None:
    plain = json.dumps(chat_body("hello there")).encode("utf-8-sig")
    packed = program.post(CHAT, content=gzip.compress(plain), headers={"Content-Encoding": "gzip"})
    assert packed.json()["choices"][0]["message"]["content"] == "hello there"
    refused = program.post(CHAT, content=plain, headers={"Content-Encoding": "br"})
    assert (refused.status_code, refused.headers["Accept-Encoding"]) == (415, "gzip, identity")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"messages": []}, "model"),
        (CHAT, {"model": "echo"}, "messages"),
        (CHAT, {"model": 5, "messages": [{"role": "user", "content": "x"}]}, "model"),
        (CHAT, chat_body() | {"messages": "hello"}, "messages"),
        (
            CHAT,
            chat_body() | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0]",
        ),
        (CHAT, chat_body(max_tokens=-1), "max_tokens"),
        (CHAT, chat_body(max_tokens=1.5), "max_tokens"),
        (CHAT, chat_body(temperature=-0.1), "temperature"),
        (CHAT, chat_body(temperature="hot"), "temperature"),
        (CHAT, chat_body(top_p=-1), "top_p"),
        (CHAT, chat_body(top_k=-2), "top_k"),
        (CHAT, chat_body(seed="lucky"), "seed"),
        (CHAT, chat_body(stream="yes"), "stream"),
        (CHAT, chat_body(stop=5), "stop"),
        (COMPLETIONS, {"model": "echo"}, "prompt"),
        (COMPLETIONS, {"model": "echo", "prompt": 5}, "prompt"),
        (COMPLETIONS, {"model": "echo", "prompt": [["one"], "two"]}, "prompt"),
        (COMPLETIONS, {"model": "echo", "prompt": "x", "max_tokens": -5}, "max_tokens"),
        (ARRANCA, {"timestamp": "now"}, "text"),
        (ARRANCA, {"text": "", "timestamp": "now"}, "text"),
        (ARRANCA, {"text": 5, "timestamp": "now"}, "text"),
        (ARRANCA, {"text": None, "timestamp": "now"}, "text"),
        (ARRANCA, {"text": "x"}, "timestamp"),
        (ARRANCA, {"text": "x", "timestamp": True}, "timestamp"),
        (ARRANCA, {"text": "x", "timestamp": []}, "timestamp"),
        (ARRANCA, [], "body"),
        (ARRANCA, "text", "body"),
    ],
)
def test_a_wrong_field_is_named(program: httpx.Client, path: str, body: Any, field: str) -> None:
    answer = program.post(path, json=body)
    assert answer.status_code == 400, answer.text
    message, blamed = complaint(answer)
    assert blamed is not None
    assert blamed.startswith(field)
    assert field in message


@pytest.mark.parametrize("path", [CHAT, ARRANCA])
def test_a_mebibyte_is_too_large(program: httpx.Client, path: str) -> None:
    answer = program.post(
        path, content=b"x" * (1 << 20), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert "larger" in complaint(answer)[0]
    assert program.post(ARRANCA, json={"text": "still there", "timestamp": 1}).status_code == 200


def test_a_mebibyte_in_unannounced_pieces_is_too_large(program: httpx.Client) -> None:
    pieces = (b"x" * 65536 for _ in range(16))
    assert program.post(ARRANCA, content=pieces).status_code == 413


def test_what_is_not_there_and_what_is_not_possible(program: httpx.Client) -> None:
    assert program.get("/v1/nothing").status_code == 404
    assert program.get(ARRANCA).status_code == 405
    assert program.get(CHAT).status_code == 405


def test_health(service: Instance) -> None:
    assert httpx.get(f"{service.url}/healthz").status_code == 200
    ready = httpx.get(f"{service.url}/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")


# ---- a crowd


@contextmanager
def tree_of(service: Instance, model: str, *nodes: tuple[str, ...]) -> Iterator[None]:
    """A tree for one more model: its root, and a node for each tuple of options."""
    with ExitStack() as running:
        running.enter_context(root_of(service, model))
        for number, options in enumerate(nodes, 1):
            running.enter_context(node_of(service, model, f"{model}-{number}", *options))
        yield


def root_of(service: Instance, model: str) -> NodeProcess:
    return NodeProcess(service.broker, f"{model}-root", "--engine", "none", "--model", model)


def node_of(service: Instance, model: str, name: str, *options: str) -> NodeProcess:
    parent = f"{model}-root"
    return NodeProcess(
        service.broker, name, "--parent", parent, "--model", model, "--engine", "echo", *options
    )


class Crowd:
    """Streams that are open at the same time. `together` is set once all of them are."""

    def __init__(self, client: httpx.AsyncClient, size: int) -> None:
        self._client = client
        self._size = size
        self._open = 0
        self.together = asyncio.Event()

    async def ask(self, question: str) -> str:
        body = chat_body(question, stream=True) | {"model": "crowd"}
        async with self._client.stream("POST", CHAT, json=body) as answer:
            assert answer.status_code == 200
            self._open += 1
            if self._open == self._size:
                self.together.set()
            text = "".join([said(line) async for line in answer.aiter_lines()])
            self._open -= 1
            return text


@pytest.fixture
async def many_connections(service: Instance, key: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that may open a connection for each of the crowd."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * CROWD), hard))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        base_url=service.url, limits=limits, timeout=90, headers=headers
    ) as client:
        yield client
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_thousand_at_once_get_each_their_own(
    service: Instance, many_connections: httpx.AsyncClient
) -> None:
    questions = [
        f"person {number} wants {number * number} of these twelve words and no others at all"
        for number in range(CROWD)
    ]
    slow = ("--slots", str(CROWD // 2), "--token-delay", "0.8")
    with tree_of(service, "crowd", slow, slow):
        crowd = Crowd(many_connections, CROWD)
        answers = await asyncio.gather(*map(crowd.ask, questions))
    assert crowd.together.is_set(), "they were not all in flight at the same time"
    assert answers == questions


# ---- the line


def test_a_stream_tells_its_place_and_flex_lets_others_pass(
    service: Instance, program: httpx.Client
) -> None:
    with (
        tree_of(service, "line", ("--slots", "1", "--token-delay", "0.01")),
        ExitStack() as streams,
    ):

        def ask(question: str, **more: Any) -> tuple[httpx.Response, Iterator[str]]:
            body = chat_body(question, stream=True, **more) | {"model": "line"}
            answer = streams.enter_context(program.stream("POST", CHAT, json=body))
            return answer, answer.iter_lines()

        def stands(lines: Iterator[str], position: int) -> None:
            next(line for line in lines if line.startswith(f": waiting: number {position} in line"))

        running, words = ask("again", max_tokens=5000)
        next(line for line in words if said(line))
        flexible, later = ask("this can wait", service_tier="flex")
        stands(later, 1)
        _, sooner = ask("this cannot wait")
        stands(sooner, 1)
        stands(later, 2)
        job = program.get(f"/api/jobs/{flexible.headers['X-Request-Id']}").json()
        assert (job["state"], job["job_class"], job["position"]) == ("waiting", "batch", 2)
        running.close()
        assert "".join(map(said, sooner)) == "this cannot wait"
        assert "".join(map(said, later)) == "this can wait"


# ---- nobody there


def test_a_stream_says_that_it_waits_and_ends_once_a_node_joins(
    service: Instance, program: httpx.Client
) -> None:
    question = "is anybody there"
    body = chat_body(question, stream=True) | {"model": "ghost"}
    with (
        root_of(service, "ghost"),
        ExitStack() as later,
        program.stream("POST", CHAT, json=body) as answer,
    ):
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert "node" in next(line for line in lines if line.startswith(": waiting: "))
        later.enter_context(node_of(service, "ghost", "ghost-1"))
        assert "".join(map(said, lines)) == question


def test_a_stream_waits_while_every_node_is_drained(
    service: Instance, program: httpx.Client, staff: httpx.Client
) -> None:
    question = "this can wait"
    with (
        drained(staff, "n1", "n2"),
        program.stream("POST", CHAT, json=chat_body(question, stream=True)) as answer,
    ):
        lines = answer.iter_lines()
        next(line for line in lines if line.startswith(": waiting: "))
        staff.post("/api/tree/nodes/n1/resume")
        assert "".join(map(said, lines)) == question
    tree_when(staff, at_rest)


@contextmanager
def drained(staff: httpx.Client, *names: str) -> Iterator[None]:
    """These nodes take no jobs for a while."""
    try:
        for name in names:
            assert staff.post(f"/api/tree/nodes/{name}/drain").status_code == 202
        tree_when(
            staff,
            lambda tree: all(n["state"] == "drained" for n in tree["nodes"] if n["name"] in names),
        )
        yield
    finally:
        for name in names:
            staff.post(f"/api/tree/nodes/{name}/resume")
        tree_when(
            staff,
            lambda tree: all(n["state"] == "idle" for n in tree["nodes"] if n["name"] in names),
        )
