"""/v1/: what the headers tell of a request's way, and what the list tells of models."""

from typing import Any

import httpx
import pytest

from api.context import app
from api.requests.journey import Place, trail_header
from broker.wire import AnyFrame, Delta, Finished, Job, Start
from tests.unit.api_site import FakeClient, node_state
from tests.unit.openai_site import CHAT

TEXT = {"model": "tiny", "prompt": "x"}
PATHS = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]


def travelled(job: Job) -> list[AnyFrame]:
    return [
        Start(request_id=job.request_id, node="n2", trail=("root", "n2"), waits=(1.25, 0.0)),
        Delta(request_id=job.request_id, text="a"),
        Finished(request_id=job.request_id, reason="stop", prompt_tokens=1, completion_tokens=1),
    ]


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("count", [1, 2])
async def test_the_way_of_a_request(
    program: httpx.AsyncClient, fake: FakeClient, path: str, body: dict[str, Any], count: int
) -> None:
    fake.script = travelled
    answer = await program.post(path, json={**body, "n": count})
    assert answer.headers["X-Canopy-Trail"] == "root;wait=1.250, n2;wait=0.000"
    assert answer.headers["X-Canopy-Queue"] == "position=0"
    assert answer.headers["X-Request-Id"] == fake.jobs[0].request_id


@pytest.mark.parametrize(("path", "body"), PATHS)
async def test_a_stream_tells_it_in_a_comment(
    program: httpx.AsyncClient, fake: FakeClient, path: str, body: dict[str, Any]
) -> None:
    fake.script = travelled
    answer = await program.post(path, json={**body, "stream": True})
    assert ": trail: root;wait=1.250, n2;wait=0.000\n\n" in answer.text
    assert "X-Canopy-Trail" not in answer.headers or fake.streams == {}
    assert answer.headers["X-Canopy-Queue"] == "position=0"


async def test_the_place_in_the_queue(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.states = {"n1": node_state("n1", status="busy", slots=1, running=1)}
    fake.script = travelled
    answer = await program.post("/v1/chat/completions", json=CHAT)
    assert answer.headers["X-Canopy-Queue"].startswith("position=1")
    assert app().backlog.waiting(fake.jobs[0]) == 0


def test_a_place_as_text() -> None:
    assert Place(3, 12.4).header() == "position=3, seconds=12"
    assert Place(0).header() == "position=0"


def test_a_trail_stays_one_line() -> None:
    assert trail_header(("root\r\nSet-Cookie: x", "n1"), (0.5,)) == (
        "root??Set-Cookie??x;wait=0.500, n1"
    )
    assert len(trail_header(["n"] * 100, [])) == 32 * len("n, ") - 2


@pytest.mark.parametrize(
    ("sent", "told"), [("order-4711", "order-4711"), ("x" * 513, None), ("", None)]
)
async def test_a_clients_own_name_for_its_request(
    program: httpx.AsyncClient, sent: str, told: str | None
) -> None:
    headers = {"X-Client-Request-Id": sent, "X-Request-Id": "mine"}
    answer = await program.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.headers.get("X-Client-Request-Id") == told
    assert answer.headers["X-Request-Id"] != "mine"


async def test_what_a_model_can_do(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.states = {
        "n1": node_state("n1", model="org/name", engine="transformers"),
        "n2": node_state("n2", model="org/name", engine="echo"),
        "n3": node_state("n3", model="vectors", engine="encoder", tasks=("embed",)),
    }
    listed = {each["id"]: each for each in (await program.get("/v1/models")).json()["data"]}
    assert listed["org/name"]["owned_by"] == "org"
    assert listed["vectors"]["owned_by"] == "canopy"
    told = listed["org/name"]["capabilities"]
    assert (told["chat"], told["tools"], told["embeddings"]) == (True, True, False)
    assert (told["structured_output"], told["logprobs"]) == (True, False)  # as echo
    assert listed["vectors"]["capabilities"]["embeddings"]
    assert not listed["vectors"]["capabilities"]["chat"]
    assert "capabilities" not in listed["tiny"]
    for path in ("/v1/models/org/name", "/v1/models/org%2Fname"):
        assert (await program.get(path)).json() == listed["org/name"]


async def test_the_list_of_models_is_also_one_of_anthropics(program: httpx.AsyncClient) -> None:
    listed = (await program.get("/v1/models")).json()
    ids = [model["id"] for model in listed["data"]]
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (ids[0], ids[-1], False)
    for model in listed["data"]:
        assert (model["type"], model["display_name"]) == ("model", model["id"])
        assert model["created_at"] == "1970-01-01T00:00:00Z"
