"""/v1/embeddings, /v1/rerank, /v1/score: their inputs, shapes and refusals."""

import base64
import struct
from typing import Any

import httpx
import pytest

from broker.wire import AnyFrame, Failed, Finished, Job, Start, Vectors, Waiting
from tests.unit.api_site import FakeClient, node_state


def packed(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def counting(job: Job) -> list[AnyFrame]:
    """Input n becomes the row (n, 0.5), one a frame."""
    assert job.pooling is not None
    count = len(job.pooling.inputs)
    frames: list[AnyFrame] = [Start(request_id=job.request_id, node="n1")]
    for number in range(count):
        rows = (packed(number, 0.5),)
        frames.append(Vectors(request_id=job.request_id, seq=number + 1, rows=rows))
    end = Finished(request_id=job.request_id, seq=count + 1, reason="stop", prompt_tokens=7)
    return [*frames, end]


def serve(fake: FakeClient, *tasks: Any) -> None:
    fake.script = counting
    fake.states["n1"] = node_state("n1", tasks=tasks)


@pytest.fixture
def embedding(fake: FakeClient) -> FakeClient:
    serve(fake, "embed")
    return fake


@pytest.fixture
def scoring(fake: FakeClient) -> FakeClient:
    serve(fake, "score")
    return fake


async def post(program: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    return await program.post(path, json={"model": "tiny", **body})


async def test_embeddings_have_openais_shape(
    program: httpx.AsyncClient, embedding: FakeClient
) -> None:
    answer = await post(program, "/v1/embeddings", input=["a", "b"], encoding_format="float")
    assert answer.status_code == 200
    assert answer.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.0, 0.5]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 0.5]},
        ],
        "model": "tiny",
        "usage": {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7},
    }
    assert answer.headers["X-Request-Id"] == embedding.jobs[0].request_id
    assert embedding.jobs[0].task == "embed"


async def test_base64_is_the_rows_themselves(
    program: httpx.AsyncClient, embedding: FakeClient
) -> None:
    answer = await post(program, "/v1/embeddings", input="a", encoding_format="base64")
    [row] = answer.json()["data"]
    assert base64.b64decode(row["embedding"]) == packed(0, 0.5)


@pytest.mark.parametrize(
    ("sent", "inputs"),
    [
        ("a", ("a",)),
        (["a", ""], ("a", "")),
        ([5, 6], ((5, 6),)),
        ([[5, 6], [7]], ((5, 6), (7,))),
        (["a", [7]], ("a", (7,))),
    ],
)
async def test_inputs(
    sent: Any, inputs: tuple[Any, ...], program: httpx.AsyncClient, embedding: FakeClient
) -> None:
    assert (await post(program, "/v1/embeddings", input=sent)).status_code == 200
    pooling = embedding.jobs[0].pooling
    assert pooling is not None and pooling.inputs == inputs


async def test_parameters_reach_the_node(program: httpx.AsyncClient, embedding: FakeClient) -> None:
    fields = {"dimensions": 8, "prompt_name": "query", "pooling": "mean", "normalize": False}
    answer = await post(
        program,
        "/v1/embeddings",
        input="a",
        truncate_prompt_tokens=-1,
        service_tier="flex",
        user="somebody",
        **fields,
    )
    assert answer.status_code == 200
    [job] = embedding.jobs
    assert job.pooling is not None
    assert (job.pooling.dimensions, job.pooling.mode, job.pooling.truncate) == (8, "mean", -1)
    assert (job.pooling.prompt_name, job.pooling.normalize) == ("query", False)
    assert job.job_class == "batch"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "input_type": "query"}, "input_type"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ],
)
async def test_bodies_are_refused_by_name(
    body: dict[str, Any], field: str, program: httpx.AsyncClient, embedding: FakeClient
) -> None:
    answer = await post(program, "/v1/embeddings", **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert embedding.jobs == []


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
async def test_documents_are_ranked(
    path: str, program: httpx.AsyncClient, scoring: FakeClient
) -> None:
    documents = ["a", {"text": "b"}, "c"]
    answer = await post(program, path, query="q", documents=documents, top_n=2)
    assert answer.status_code == 200
    found = answer.json()
    assert found.pop("id").startswith("rerank-")
    assert found == {
        "object": "list",
        "model": "tiny",
        "results": [
            {"index": 2, "relevance_score": 2.0, "document": {"text": "c"}},
            {"index": 1, "relevance_score": 1.0, "document": {"text": "b"}},
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7},
    }
    pooling = scoring.jobs[0].pooling
    assert pooling is not None
    assert (pooling.queries, pooling.inputs) == (("q",), ("a", "b", "c"))
    plain = await post(program, path, query="q", documents=documents, return_documents=False)
    assert [set(each) for each in plain.json()["results"]] == [{"index", "relevance_score"}] * 3


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
@pytest.mark.parametrize(
    ("body", "queries", "inputs"),
    [
        ({"text_1": "q", "text_2": "a"}, ("q",), ("a",)),
        ({"text_1": "q", "text_2": ["a", "b"]}, ("q",), ("a", "b")),
        ({"text_1": ["q", "r"], "text_2": ["a", "b"]}, ("q", "r"), ("a", "b")),
        ({"queries": "q", "documents": ["a", "b"]}, ("q",), ("a", "b")),
    ],
)
async def test_pairs_are_scored(
    path: str,
    body: dict[str, Any],
    queries: tuple[str, ...],
    inputs: tuple[str, ...],
    program: httpx.AsyncClient,
    scoring: FakeClient,
) -> None:
    answer = await post(program, path, **body)
    assert answer.status_code == 200
    data = answer.json()["data"]
    assert data == [
        {"index": index, "object": "score", "score": float(index)} for index in range(len(inputs))
    ]
    pooling = scoring.jobs[0].pooling
    assert pooling is not None and (pooling.queries, pooling.inputs) == (queries, inputs)


async def test_pairs_that_do_not_match_are_refused(
    program: httpx.AsyncClient, scoring: FakeClient
) -> None:
    for body in ({"text_1": ["q", "r"], "text_2": "a"}, {"text_2": "a"}, {}):
        answer = await post(program, "/v1/score", **body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "text_1")


@pytest.mark.parametrize(
    ("tasks", "path", "body", "words"),
    [
        (("generate",), "/v1/embeddings", {"input": "a"}, "does not embed; it writes answers"),
        (("score",), "/v1/embeddings", {"input": "a"}, "it scores documents"),
        (("embed",), "/v1/rerank", {"query": "q", "documents": ["a"]}, "does not score; it makes"),
        (
            ("embed",),
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}]},
            "does not generate; it makes vectors",
        ),
        (("embed",), "/v1/completions", {"prompt": "a"}, "send it to /v1/embeddings"),
    ],
)
async def test_a_model_for_something_else_is_refused(
    tasks: tuple[Any, ...],
    path: str,
    body: dict[str, Any],
    words: str,
    program: httpx.AsyncClient,
    fake: FakeClient,
) -> None:
    serve(fake, *tasks)
    answer = await post(program, path, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("model", "wrong_task")
    assert words in error["message"]
    assert fake.jobs == []


async def test_while_no_node_serves_the_job_waits(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    serve(fake, "generate")
    fake.states.clear()

    def waiting(job: Job) -> list[AnyFrame]:
        waits = Waiting(request_id=job.request_id, node="root", reason="no node")
        return [waits, *counting(job)]

    fake.script = waiting
    answer = await post(program, "/v1/embeddings", input="a")
    assert answer.status_code == 200
    assert answer.headers["X-Canopy-Waited"] == "no node"


async def test_failures_name_the_field(program: httpx.AsyncClient, embedding: FakeClient) -> None:
    def failing(job: Job) -> list[AnyFrame]:
        message = "input[1] has 600 tokens"
        return [Failed(request_id=job.request_id, code="too_long", message=message)]

    embedding.script = failing
    answer = await post(program, "/v1/embeddings", input=["a", "b"])
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


async def test_a_node_that_answers_something_else_is_an_error(
    program: httpx.AsyncClient, embedding: FakeClient
) -> None:
    embedding.script = lambda job: [
        Finished(request_id=job.request_id, reason="stop", prompt_tokens=1)
    ]
    answer = await post(program, "/v1/embeddings", input="a")
    assert answer.status_code == 500
    assert "0 results for 1 inputs" in answer.json()["error"]["message"]


async def test_only_models_that_write_are_offered_for_chats(
    program: httpx.AsyncClient, member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.states["n1"] = node_state("n1", tasks=("embed",))
    fake.states["n2"] = node_state("n2", model="big")
    models = (await member.get("/api/models")).json()
    assert [model["id"] for model in models["models"]] == ["big"]
    assert models["default"] == "big"
    listed = (await program.get("/v1/models")).json()["data"]
    assert [(model["id"], model["tasks"]) for model in listed] == [
        ("tiny", ["embed"]),
        ("big", ["generate"]),
    ]


async def test_work_is_charged_by_tokens(program: httpx.AsyncClient, embedding: FakeClient) -> None:
    await post(program, "/v1/embeddings", input=["a" * 400, [5] * 50])
    assert embedding.jobs[0].work == 150.0
