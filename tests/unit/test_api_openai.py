"""/v1/: shapes, streams, failures, classes, addresses."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from api.requests import position as queue_position
from broker.wire import Delta, Failed, Finished, Job, Waiting
from tests.unit.api_site import FakeClient, echo, node_state, until
from tests.unit.openai_site import CHAT, events, payloads


async def test_chat_completion_has_openais_shape(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    answer = await program.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200
    completion = answer.json()
    request_id = answer.headers["X-Request-Id"]
    assert completion.pop("created") > 1_700_000_000
    assert completion == {
        "id": f"chatcmpl-{request_id}",
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "logprobs": None,
                "message": {"role": "assistant", "content": "one two three", "refusal": None},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
    }
    assert fake.jobs[0].request_id == request_id
    assert "X-Canopy-Waited" not in answer.headers


async def test_completion_has_openais_shape(program: httpx.AsyncClient, fake: FakeClient) -> None:
    completion = (
        await program.post("/v1/completions", json={"model": "tiny", "prompt": ["a b"]})
    ).json()
    assert completion["object"] == "text_completion"
    assert completion["id"].startswith("cmpl-")
    assert completion["choices"] == [
        {"index": 0, "logprobs": None, "text": "a b", "finish_reason": "stop"}
    ]
    assert fake.jobs[0].prompt == "a b"
    assert fake.jobs[0].messages is None


async def test_chat_stream(program: httpx.AsyncClient) -> None:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    answer = await program.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events(answer.text)[-1] == "data: [DONE]"
    first, *pieces, last, usage = payloads(answer.text)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == "one two three"
    assert all(piece["usage"] is None for piece in (first, *pieces, last))
    assert last["choices"][0] == {
        "index": 0,
        "logprobs": None,
        "delta": {},
        "finish_reason": "stop",
    }
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 6
    assert len({piece["id"] for piece in (first, *pieces, last, usage)}) == 1


async def test_text_stream_without_usage(program: httpx.AsyncClient) -> None:
    answer = await program.post(
        "/v1/completions", json={"model": "tiny", "prompt": "a b", "stream": True}
    )
    *pieces, last = payloads(answer.text)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == "a b"
    assert last["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in piece for piece in (*pieces, last))
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_unknown_model_lists_the_models(program: httpx.AsyncClient) -> None:
    answer = await program.post("/v1/chat/completions", json={**CHAT, "model": "gpt-9"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "tiny" in error["message"]
    assert "big" in error["message"]


async def test_known_model_without_a_tree_is_unavailable(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.trees = set()
    answer = await program.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_tree")


async def test_no_broker_is_503(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.connected = False
    answer = await program.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json()["error"]["type"]) == (
        503,
        "service_unavailable_error",
    )
    assert answer.headers["Retry-After"]


async def test_models(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.states["n2"] = node_state("n2", model="third")
    listing = (await program.get("/v1/models")).json()
    assert listing["object"] == "list"
    assert [each["id"] for each in listing["data"]] == ["tiny", "big", "third"]
    assert listing["data"][0]["object"] == "model"
    assert (await program.get("/v1/models/tiny")).json()["id"] == "tiny"
    missing = await program.get("/v1/models/no/such")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("code", "retryable", "status", "param"),
    [
        ("too_long", False, 400, "messages"),
        ("invalid", False, 400, None),
        ("expired", False, 504, None),
        ("engine", False, 500, None),
        ("internal", False, 500, None),
        ("internal", True, 503, None),
        ("no_node", False, 503, None),
    ],
)
async def test_failed_jobs(
    program: httpx.AsyncClient,
    fake: FakeClient,
    code: Any,
    retryable: bool,
    status: int,
    param: str | None,
) -> None:
    fake.script = lambda job: [
        Failed(request_id=job.request_id, code=code, message="because", retryable=retryable)
    ]
    answer = await program.post("/v1/chat/completions", json=CHAT)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert "because" in error["message"]
    assert answer.headers["X-Request-Id"] == fake.jobs[0].request_id


async def test_failure_in_mid_stream(program: httpx.AsyncClient, fake: FakeClient) -> None:
    def broken(job: Job) -> list[Any]:
        failed = Failed(request_id=job.request_id, seq=1, code="engine", message="out of memory")
        return [Delta(request_id=job.request_id, text="so far"), failed]

    fake.script = broken
    answer = await program.post("/v1/chat/completions", json={**CHAT, "stream": True})
    *_, piece, error = payloads(answer.text)
    assert piece["choices"][0]["delta"]["content"] == "so far"
    assert error["error"]["message"] == "out of memory"
    assert "[DONE]" not in answer.text


async def test_waiting_is_told(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.states.clear()
    streamed = await program.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert events(streamed.text)[0] == ": waiting: no node is serving tiny yet"
    whole = await program.post("/v1/chat/completions", json=CHAT)
    assert whole.headers["X-Canopy-Waited"] == "no node is serving tiny yet"
    fake.script = lambda job: [
        Waiting(request_id=job.request_id, node="root", reason="all busy"),
        *echo(job),
    ]
    streamed = await program.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert ": waiting: all busy" in events(streamed.text)


async def test_the_place_in_the_line_is_told(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: [
        Waiting(
            request_id=job.request_id,
            node="root",
            reason="every slot is busy",
            position=12,
            seconds=31.0,
        ),
        *echo(job),
    ]
    streamed = await program.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert ": waiting: number 12 in line, starts in about 30 s (every slot is busy)" in events(
        streamed.text
    )
    whole = await program.post("/v1/chat/completions", json=CHAT)
    assert whole.headers["X-Canopy-Waited"] == "every slot is busy"


@pytest.mark.parametrize(
    ("position", "seconds", "words"),
    [
        (None, None, "all busy"),
        (3, None, "number 3 in line (all busy)"),
        (None, 4.4, "starts in about 4 s (all busy)"),
        (1, 0.0, "number 1 in line, starts in about 1 s (all busy)"),
    ],
)
def test_a_place_in_words(position: int | None, seconds: float | None, words: str) -> None:
    frame = Waiting(
        request_id="r", node="root", reason="all busy", position=position, seconds=seconds
    )
    assert queue_position.describe(frame) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (9.4, "9 s"),
        (9.5, "10 s"),
        (32.4, "30 s"),
        (57.4, "55 s"),
        (57.5, "1 min"),
        (150, "3 min"),
        (3569, "59 min"),
        (3570, "1 h"),
        (5000, "1.5 h"),
        (90_000, "25 h"),
    ],
)
def test_estimates_are_told_roughly(seconds: float, words: str) -> None:
    assert queue_position.rounded(seconds) == words


@pytest.mark.parametrize(
    ("requested", "job_class", "served"),
    [
        ("auto", "interactive", "default"),
        ("default", "interactive", "default"),
        ("priority", "interactive", "default"),
        ("scale", "interactive", "default"),
        ("fast", "interactive", "default"),
        ("flex", "batch", "flex"),
    ],
)
@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", CHAT), ("/v1/completions", {"model": "tiny", "prompt": "a b"})],
)
async def test_the_service_tier_is_the_jobs_class(
    program: httpx.AsyncClient,
    fake: FakeClient,
    path: str,
    body: dict[str, Any],
    requested: str,
    job_class: str,
    served: str,
) -> None:
    whole = await program.post(path, json={**body, "service_tier": requested})
    assert whole.json()["service_tier"] == served
    options = {"stream": True, "stream_options": {"include_usage": True}, "service_tier": requested}
    streamed = await program.post(path, json={**body, **options})
    assert {chunk["service_tier"] for chunk in payloads(streamed.text)} == {served}
    assert [job.job_class for job in fake.jobs] == [job_class] * 2


@pytest.mark.parametrize("tier", [{}, {"service_tier": None}])
async def test_who_names_no_tier_hears_of_none(
    program: httpx.AsyncClient, fake: FakeClient, tier: dict[str, Any]
) -> None:
    whole = await program.post("/v1/chat/completions", json={**CHAT, **tier})
    assert "service_tier" not in whole.json()
    streamed = await program.post("/v1/chat/completions", json={**CHAT, "stream": True, **tier})
    assert not any("service_tier" in chunk for chunk in payloads(streamed.text))
    assert [job.job_class for job in fake.jobs] == ["interactive"] * 2


async def test_keep_alive_comments(
    program: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.http import sse

    monkeypatch.setattr(sse, "KEEPALIVE", 0.02)
    fake.script = lambda job: []
    request = asyncio.create_task(
        program.post("/v1/chat/completions", json={**CHAT, "stream": True})
    )
    await fake.submitted.wait()
    await asyncio.sleep(0.2)
    fake.push(Finished(request_id=fake.jobs[0].request_id, reason="stop"))
    assert ": keep-alive" in events((await request).text)


async def test_bodies_that_are_too_large(program: httpx.AsyncClient) -> None:
    for size in (1_000_001, 1 << 20, 3 << 20):
        answer = await program.post("/v1/chat/completions", content=b"x" * size)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    elsewhere = await program.post("/arranca/", content=b"x" * (1 << 20))
    assert elsewhere.status_code == 413
    assert set(elsewhere.json()["error"]) == {"message", "field", "code", "params"}
    just_fits = await program.post("/v1/chat/completions", content=b"x" * 1_000_000)
    assert just_fits.status_code == 400


async def test_a_thousand_requests_at_once_get_each_their_own_answer(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = lambda job: []

    async def ask(number: int) -> tuple[int, str]:
        body = {"model": "tiny", "messages": [{"role": "user", "content": f"question {number}"}]}
        answer = await program.post("/v1/chat/completions", json=body)
        return number, answer.json()["choices"][0]["message"]["content"]

    requests = [asyncio.create_task(ask(number)) for number in range(1000)]
    await until(lambda: len(fake.jobs) == 1000, seconds=30)
    frames = [echo(job) for job in fake.jobs]
    for step in range(4):  # start, two words, end: interleaved between all requests, last one first
        for each in reversed(frames):
            fake.push(each[step])
    answers = await asyncio.gather(*requests)
    assert answers == [(number, f"question {number}") for number in range(1000)]
    assert fake.cancelled == []


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_closed_connection_cancels_the_job(
    live: str, program: httpx.AsyncClient, fake: FakeClient, streamed: bool
) -> None:
    fake.script = lambda job: []
    async with httpx.AsyncClient(base_url=live, headers=program.headers) as client:
        request = asyncio.create_task(
            client.post("/v1/chat/completions", json={**CHAT, "stream": streamed})
        )
        await fake.submitted.wait()
        await asyncio.sleep(0.05)
        assert fake.cancelled == []
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await until(lambda: fake.cancelled == [(fake.jobs[0].request_id, 2)])


async def test_tokens_arrive_as_they_are_made(
    live: str, program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = lambda job: []
    async with (
        httpx.AsyncClient(base_url=live, headers=program.headers) as client,
        client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer,
    ):
        lines = (line async for line in answer.aiter_lines() if line)
        await anext(lines)
        for number in range(3):
            fake.push(Delta(request_id=fake.jobs[0].request_id, seq=number, text=f"w{number}"))
            piece = json.loads((await anext(lines))[6:])
            assert piece["choices"][0]["delta"]["content"] == f"w{number}"
