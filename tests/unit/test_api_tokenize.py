"""/tokenize and /detokenize: a node counts, in vLLM's shape."""

import httpx
import pytest

from broker.wire import AnyFrame, Delta, Failed, Finished, Job, Start, TokenLogprob
from tests.unit.api_site import FakeClient


def tokenized(job: Job) -> list[AnyFrame]:
    """A node's answer: two tokens, the first of which is half a character."""
    return [
        Start(request_id=job.request_id, node="n1"),
        Delta(request_id=job.request_id, text="", tokens=0, ids=(7,)),
        Delta(
            request_id=job.request_id,
            text="",
            tokens=0,
            ids=(9,),
            prompt_logprobs=(TokenLogprob(b"\xf0\x9f", 0.0), TokenLogprob(b" a", 0.0)),
        ),
        Finished(request_id=job.request_id, reason="stop", prompt_tokens=2),
    ]


@pytest.mark.parametrize("path", ["/v1/tokenize", "/tokenize"])
async def test_a_prompt(program: httpx.AsyncClient, fake: FakeClient, path: str) -> None:
    fake.script = tokenized
    answer = await program.post(path, json={"model": "tiny", "prompt": "x"})
    assert answer.json() == {
        "count": 2,
        "max_model_len": None,
        "tokens": [7, 9],
        "token_strs": None,
    }
    [job] = fake.jobs
    assert (job.task, job.prompt, job.sampling.max_tokens) == ("tokenize", "x", 0)
    assert job.add_special_tokens is None
    assert answer.headers["X-Request-Id"] == job.request_id


async def test_a_dialogue_with_the_tokens_as_text(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = tokenized
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "add_special_tokens": True,
        "return_token_strs": True,
    }
    answer = await program.post("/v1/tokenize", json=body)
    assert answer.json()["token_strs"] == ["bytes:\\xf0\\x9f", " a"]
    [job] = fake.jobs
    assert job.add_special_tokens is True
    assert job.messages is not None
    assert job.messages[0].content == "x"


@pytest.mark.parametrize(
    "fields", [{}, {"prompt": "x", "messages": [{"role": "user", "content": ""}]}]
)
async def test_a_prompt_or_messages(program: httpx.AsyncClient, fields: dict[str, object]) -> None:
    answer = await program.post("/v1/tokenize", json={"model": "tiny", **fields})
    assert answer.status_code == 400
    assert "either prompt or messages" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/detokenize", "/detokenize"])
async def test_tokens_back_to_text(program: httpx.AsyncClient, fake: FakeClient, path: str) -> None:
    fake.script = lambda job: [
        Delta(request_id=job.request_id, text="a ", tokens=0),
        Delta(request_id=job.request_id, text="tree", tokens=0),
        Finished(request_id=job.request_id, reason="stop", prompt_tokens=2),
    ]
    answer = await program.post(path, json={"model": "tiny", "tokens": [7, 9]})
    assert answer.json() == {"prompt": "a tree"}
    [job] = fake.jobs
    assert (job.task, job.prompt, job.prompt_ids) == ("detokenize", None, (7, 9))


@pytest.mark.parametrize("tokens", [[], [-1], [2**32], ["a"], "a", [1.5]])
async def test_what_is_no_list_of_tokens(program: httpx.AsyncClient, tokens: object) -> None:
    answer = await program.post("/v1/detokenize", json={"model": "tiny", "tokens": tokens})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("tokens")


async def test_a_node_that_refuses(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: [
        Failed(request_id=job.request_id, code="too_long", message="5000 tokens, at most 4096")
    ]
    answer = await program.post("/v1/tokenize", json={"model": "tiny", "prompt": "x"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (
        400,
        "context_length_exceeded",
        "prompt",
    )


async def test_a_model_that_is_not_there(program: httpx.AsyncClient) -> None:
    answer = await program.post("/tokenize", json={"model": "nope", "prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
