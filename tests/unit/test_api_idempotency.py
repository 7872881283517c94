"""Idempotency-Key: a retry gets the answer that was begun, whatever became of it meanwhile."""

import asyncio
import itertools
import json
import struct
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.utils import timezone

from api.answers import following, process, takeover
from api.answers import store as store_of_answers
from api.answers import writer as writer_module
from api.context import app
from api.idempotency import store
from api.idempotency.models import KeptRequest
from broker.wire import AnyFrame, Delta, Failed, Finished, Job, Vectors
from tests.unit.api_site import (
    FakeClient,
    beginning,
    browser,
    echo,
    log_in,
    make_user,
    node_state,
    until,
)

_numbers = itertools.count(1)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}]}
STREAMED = {**CHAT, "stream": True}
PATH = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for longer than a test needs."""
    monkeypatch.setattr(takeover, "EVERY", 0.01)
    monkeypatch.setattr(following, "POLL", 0.01)
    monkeypatch.setattr(writer_module, "SAVE_EVERY", 0.01)
    monkeypatch.setattr(writer_module, "HEARTBEAT", 0.01)


@pytest.fixture
def key() -> dict[str, str]:
    """A new key, as headers."""
    return {"Idempotency-Key": f"key {next(_numbers)}"}


def text_of(answer: httpx.Response) -> str:
    """The text of a streamed chat completion, or of a whole one."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return str(answer.json()["choices"][0]["message"]["content"])
    assert answer.text.endswith("data: [DONE]\n\n")
    return "".join(
        choice["delta"].get("content", "")
        for chunk in chunks(answer)
        for choice in chunk["choices"]
    )


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    """The objects of a streamed answer."""
    return [
        json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")
    ]


async def kept_of(key: dict[str, str]) -> KeptRequest:
    return await KeptRequest.objects.aget(key=key["Idempotency-Key"])


async def test_a_finished_request_is_answered_again_without_a_job(
    program: httpx.AsyncClient, fake: FakeClient, key: dict[str, str]
) -> None:
    first = await program.post(PATH, json=CHAT, headers=key)
    again = await program.post(PATH, json=CHAT, headers=key)
    assert first.json() == again.json()
    assert first.json()["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert text_of(first) == "one two three"
    assert len(fake.jobs) == 1
    assert first.headers["X-Request-Id"] == again.headers["X-Request-Id"] == fake.jobs[0].request_id
    assert "Idempotent-Replay" not in first.headers
    assert again.headers["Idempotent-Replay"] == "true"
    streamed = await program.post(PATH, json=STREAMED, headers=key)
    assert text_of(streamed) == "one two three"
    assert {(each["id"], each["created"]) for each in chunks(streamed)} == {
        (first.json()["id"], first.json()["created"])
    }
    assert chunks(streamed)[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "tiny", "prompt": "one two"}),
        ("/v1/completions", {"model": "tiny", "prompt": "one two", "stream": True}),
        ("/arranca/", {"text": "one two", "timestamp": "now"}),
    ],
)
async def test_the_other_endpoints_keep_requests_too(
    program: httpx.AsyncClient,
    fake: FakeClient,
    key: dict[str, str],
    path: str,
    body: dict[str, Any],
) -> None:
    first = await program.post(path, json=body, headers=key)
    again = await program.post(path, json=body, headers=key)
    assert (first.status_code, again.status_code, len(fake.jobs)) == (200, 200, 1)
    assert again.headers["Idempotent-Replay"] == "true"
    assert again.headers["X-Request-Id"] == first.headers["X-Request-Id"]
    if "stream" not in body:
        assert first.json() == again.json()


async def test_a_retry_attaches_to_what_runs(
    program: httpx.AsyncClient, fake: FakeClient, key: dict[str, str]
) -> None:
    fake.script = beginning("one")
    readers = [
        asyncio.create_task(program.post(PATH, json=body, headers=key))
        for body in (STREAMED, CHAT, STREAMED, CHAT)
    ]
    await until(lambda: fake.jobs)
    await asyncio.sleep(0.05)
    request_id = fake.jobs[0].request_id
    fake.push(Delta(request_id=request_id, text=" two"))
    fake.push(
        Finished(request_id=request_id, reason="length", prompt_tokens=3, completion_tokens=2)
    )
    answers = await asyncio.gather(*readers)
    assert [text_of(each) for each in answers] == ["one two"] * 4
    assert len(fake.jobs) == 1
    assert sum("Idempotent-Replay" in each.headers for each in answers) == 3
    assert {each.headers["X-Request-Id"] for each in answers} == {request_id}


@pytest.mark.parametrize("body", [CHAT, STREAMED])
async def test_a_client_that_leaves_finds_its_answer_later(
    live: str,
    program: httpx.AsyncClient,
    fake: FakeClient,
    key: dict[str, str],
    body: dict[str, Any],
) -> None:
    fake.script = beginning("one")
    async with httpx.AsyncClient(base_url=live, headers=program.headers) as client:
        request = asyncio.create_task(client.post(PATH, json=body, headers=key))
        await fake.submitted.wait()
        await asyncio.sleep(0.05)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    fake.push(Delta(request_id=fake.jobs[0].request_id, text=" two"))
    fake.push(Finished(request_id=fake.jobs[0].request_id, reason="stop"))
    assert text_of(await program.post(PATH, json=body, headers=key)) == "one two"
    assert fake.cancelled == []
    assert len(fake.jobs) == 1


async def test_a_key_stands_for_one_request(
    program: httpx.AsyncClient, fake: FakeClient, key: dict[str, str]
) -> None:
    assert (await program.post(PATH, json=CHAT, headers=key)).status_code == 200
    for path, body in [
        (PATH, {**CHAT, "max_tokens": 5}),
        (PATH, {**CHAT, "model": "big"}),
        ("/v1/completions", {"model": "tiny", "prompt": "one two three"}),
    ]:
        refused = await program.post(path, json=body, headers=key)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (422, "idempotency_key_reused")
        assert "another request" in error["message"]
    turned = dict(reversed(CHAT.items()))
    assert (await program.post(PATH, json=turned, headers=key)).headers[
        "Idempotent-Replay"
    ] == "true"
    assert len(fake.jobs) == 1


async def test_users_do_not_share_keys(
    program: httpx.AsyncClient, fake: FakeClient, key: dict[str, str]
) -> None:
    question = {"text": "hello", "timestamp": 1}
    first = await program.post("/arranca/", json=question, headers=key)
    async with browser() as other:
        await log_in(other, await make_user())
        second = await other.post("/arranca/", json=question, headers=key)
    assert first.json()["request_id"] != second.json()["request_id"]
    assert "Idempotent-Replay" not in second.headers


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 400),
        ("x" * 256, 400),
        ("schlüssel", 400),
        ("tab\there", 400),
        ("x" * 255, 200),
        ("~ !", 200),
    ],
)
async def test_which_keys_are_taken(program: httpx.AsyncClient, text: str, status: int) -> None:
    answer = await program.post(PATH, json=CHAT, headers={b"Idempotency-Key": text.encode()})
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["param"] == "Idempotency-Key"


async def test_a_refused_request_is_not_kept(
    program: httpx.AsyncClient, fake: FakeClient, key: dict[str, str]
) -> None:
    fake.connected = False
    assert (await program.post(PATH, json=CHAT, headers=key)).status_code == 503
    fake.connected = True
    assert (
        await program.post(PATH, json={**CHAT, "model": "gpt-9"}, headers=key)
    ).status_code == 404
    answer = await program.post(PATH, json=CHAT, headers=key)
    assert text_of(answer) == "one two three"
    assert "Idempotent-Replay" not in answer.headers


async def test_a_failure_is_told_again_unless_trying_again_may_help(
    program: httpx.AsyncClient, fake: FakeClient, key: dict[str, str]
) -> None:
    fake.script = lambda job: [
        Failed(request_id=job.request_id, code="internal", message="lost", retryable=True)
    ]
    assert (await program.post(PATH, json=CHAT, headers=key)).status_code == 503
    fake.script = lambda job: [
        Failed(request_id=job.request_id, code="too_long", message="9 of 8 tokens")
    ]
    for replayed in (False, True):
        await until(lambda: not app().writers.handles())
        answer = await program.post(PATH, json=CHAT, headers=key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            400,
            "context_length_exceeded",
        )
        assert (await kept_of(key)).request_id == answer.headers["X-Request-Id"]
        assert len(fake.jobs) == 2, replayed


async def test_the_request_of_a_dead_process_is_finished_here(
    program: httpx.AsyncClient, fake: FakeClient, key: dict[str, str]
) -> None:
    fake.script = beginning("one tw")
    cut = asyncio.create_task(program.post(PATH, json=STREAMED, headers=key))
    await fake.submitted.wait()
    kept = await kept_of(key)
    writer = app().writers.get(kept.handle)
    assert writer is not None
    await writer.hand_over()
    fake.script = echo
    host = process.identity().rsplit(":", 2)[0]
    await KeptRequest.objects.filter(pk=kept.pk).aupdate(owner=f"{host}:1:1", content="one")
    again = await program.post(PATH, json=CHAT, headers=key)
    assert text_of(again) == "one two three"
    assert again.json()["usage"]["total_tokens"] == 6
    assert [(each.request_id, each.attempt) for each in fake.jobs] == [
        (kept.request_id, 1),
        (kept.request_id, 1001),
    ]
    assert text_of(await cut) == "one two three"


async def test_old_requests_are_forgotten(
    program: httpx.AsyncClient, fake: FakeClient, key: dict[str, str]
) -> None:
    await program.post(PATH, json=CHAT, headers=key)
    kept = await kept_of(key)
    assert kept.fingerprint
    assert await store.delete_expired() == 0
    await KeptRequest.objects.filter(pk=kept.pk).aupdate(
        created=timezone.now() - timedelta(hours=24, seconds=1)
    )
    assert await store.delete_expired() == 1
    assert "Idempotent-Replay" not in (await program.post(PATH, json=CHAT, headers=key)).headers


async def test_a_request_deleted_under_its_reader_fails(
    program: httpx.AsyncClient, fake: FakeClient, key: dict[str, str]
) -> None:
    fake.script = beginning("one")
    request = asyncio.create_task(program.post(PATH, json=CHAT, headers=key))
    await fake.submitted.wait()
    await store.remove(await kept_of(key))
    assert text_of(await request) == "one"  # it ends like one that was stopped
    assert fake.cancelled == [(fake.jobs[0].request_id, 2)]


POOLED = [
    ("/v1/embeddings", "embed", {"input": ["a", "b", "c"]}),
    ("/v1/rerank", "score", {"query": "q", "documents": ["a", "b"]}),
    ("/v1/score", "score", {"text_1": "q", "text_2": ["a", "b"]}),
]


def serve_rows(fake: FakeClient, task: Any) -> None:
    """Input n becomes the row (n, 0.5), one a frame."""

    def rows(job: Job) -> list[AnyFrame]:
        assert job.pooling is not None
        count = len(job.pooling.inputs)
        made: list[AnyFrame] = [
            Vectors(request_id=job.request_id, seq=n, rows=(struct.pack("<2f", n, 0.5),))
            for n in range(count)
        ]
        end = Finished(request_id=job.request_id, seq=count, reason="stop", prompt_tokens=7)
        return [*made, end]

    fake.script = rows
    fake.states["n1"] = node_state("n1", tasks=(task,))


@pytest.mark.parametrize(("path", "task", "fields"), POOLED, ids=[each[0] for each in POOLED])
async def test_vectors_and_scores_are_kept(
    path: str,
    task: str,
    fields: dict[str, Any],
    program: httpx.AsyncClient,
    fake: FakeClient,
    key: dict[str, str],
) -> None:
    serve_rows(fake, task)
    body = {"model": "tiny", **fields}
    first = await program.post(path, json=body, headers=key)
    again = await program.post(path, json=body, headers=key)
    assert first.status_code == 200
    assert first.json() == again.json()
    assert len(fake.jobs) == 1
    assert first.headers["X-Request-Id"] == again.headers["X-Request-Id"] == fake.jobs[0].request_id
    assert again.headers["Idempotent-Replay"] == "true"
    other = await program.post(path, json={**body, "service_tier": "flex"}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_vectors_are_not_stored_until_all_are_there(
    program: httpx.AsyncClient, fake: FakeClient, key: dict[str, str]
) -> None:
    """Another process that takes the job over makes all of them again, and none comes twice."""
    serve_rows(fake, "embed")
    whole = fake.script
    fake.script = lambda job: list(whole(job))[:1]
    body = {"model": "tiny", "input": ["a", "b"]}
    reading = asyncio.create_task(program.post("/v1/embeddings", json=body, headers=key))
    await until(lambda: bool(fake.jobs))
    kept = await kept_of(key)
    writer = app().writers.get(kept.handle)
    assert writer is not None
    fake.script = whole
    await writer.hand_over()
    assert (await kept_of(key)).content == ""
    await store_of_answers.release(kept, kept.touched)
    app().takeover.wake()
    answer = await reading
    assert [row["embedding"] for row in answer.json()["data"]] == [[0.0, 0.5], [1.0, 0.5]]
    assert (await kept_of(key)).content.count("\n") == 2
    assert len(fake.jobs) == 2


async def test_more_vectors_than_are_kept_are_refused_by_name(
    program: httpx.AsyncClient, fake: FakeClient, key: dict[str, str]
) -> None:
    serve_rows(fake, "embed")
    body = {"model": "tiny", "input": ["a"] * 513}
    refused = await program.post("/v1/embeddings", json=body, headers=key)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "not_with_idempotency_key"
    assert refused.json()["error"]["param"] == "input"
    assert not fake.jobs
    assert (await program.post("/v1/embeddings", json=body)).status_code == 200
