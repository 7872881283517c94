"""/v1/: several choices are jobs of their own."""

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from api.context import app
from broker.encoding import decode, encode
from broker.errors import Unavailable
from broker.stream import Stream
from broker.wire import Delta, Failed, Finished, Job
from tests.unit.api_site import FakeClient, echo, until
from tests.unit.openai_site import CHAT, payloads


def numbered(fake: FakeClient) -> None:
    """Every job's answer says which one it is."""
    fake.script = lambda job: echo(
        msgspec.structs.replace(job, messages=None, prompt=f"choice {len(fake.jobs)}")
    )


async def test_choices_are_jobs_of_their_own(program: httpx.AsyncClient, fake: FakeClient) -> None:
    numbered(fake)
    answer = await program.post("/v1/chat/completions", json={**CHAT, "n": 3, "seed": 2**63 - 2})
    completion = answer.json()
    choices = [
        (each["index"], each["message"]["content"], each["finish_reason"])
        for each in completion["choices"]
    ]
    assert choices == [(0, "choice 1", "stop"), (1, "choice 2", "stop"), (2, "choice 3", "stop")]
    assert completion["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    assert answer.headers["X-Request-Id"] == fake.jobs[0].request_id
    assert completion["id"] == f"chatcmpl-{fake.jobs[0].request_id}"
    assert len({job.request_id for job in fake.jobs}) == 3
    assert [job.sampling.seed for job in fake.jobs] == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert all(job.sampling.reproducible for job in fake.jobs)
    assert all(decode(encode(job), Job) == job for job in fake.jobs)


async def test_choices_without_a_seed_have_none(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    assert (
        await program.post("/v1/completions", json={"model": "tiny", "prompt": "a", "n": 2})
    ).is_success
    assert [job.sampling.seed for job in fake.jobs] == [None, None]
    assert not any(job.sampling.reproducible for job in fake.jobs)


async def test_streamed_choices_interleave(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: []
    body = {
        "model": "tiny",
        "prompt": "x",
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = asyncio.create_task(program.post("/v1/completions", json=body))
    await until(lambda: len(fake.jobs) == 2)
    one, two = (job.request_id for job in fake.jobs)
    for index, (request_id, text) in enumerate([(one, "a"), (two, "b"), (one, "c"), (two, "d")]):
        fake.push(Delta(request_id=request_id, text=text))
        await until(
            lambda index=index: sum(len(stream._unread) for stream in fake.streams.values()) == 0
        )
    fake.push(Finished(request_id=two, reason="length", prompt_tokens=5, completion_tokens=2))
    fake.push(Delta(request_id=one, text="e"))
    fake.push(Finished(request_id=one, reason="stop", prompt_tokens=5, completion_tokens=3))
    text = (await request).text
    *chunks, usage = payloads(text)
    pieces = [
        (each["index"], each["text"], each["finish_reason"])
        for chunk in chunks
        for each in chunk["choices"]
    ]
    assert [each for each in pieces if each[0] == 0] == [
        (0, "a", None),
        (0, "c", None),
        (0, "e", None),
        (0, "", "stop"),
    ]
    assert [each for each in pieces if each[0] == 1] == [
        (1, "b", None),
        (1, "d", None),
        (1, "", "length"),
    ]
    assert [index for index, *_ in pieces[:4]] == [0, 1, 0, 1]
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    assert len({chunk["id"] for chunk in (*chunks, usage)}) == 1
    assert text.count("[DONE]") == 1


async def test_streamed_chat_choices_begin_with_a_role_each(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    numbered(fake)
    answer = await program.post("/v1/chat/completions", json={**CHAT, "n": 2, "stream": True})
    choices = [choice for chunk in payloads(answer.text) for choice in chunk["choices"]]
    for index in range(2):
        first, *rest, last = [choice for choice in choices if choice["index"] == index]
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"]["content"] for choice in rest) == f"choice {index + 1}"
        assert last["finish_reason"] == "stop"


@pytest.mark.parametrize("streamed", [True, False])
async def test_one_choice_that_fails_ends_all(
    program: httpx.AsyncClient, fake: FakeClient, streamed: bool
) -> None:
    def second_fails(job: Job) -> list[Any]:
        if len(fake.jobs) == 2:
            return [Failed(request_id=job.request_id, code="engine", message="out of memory")]
        return []

    fake.script = second_fails
    answer = await program.post("/v1/chat/completions", json={**CHAT, "n": 3, "stream": streamed})
    assert "out of memory" in answer.text
    assert "[DONE]" not in answer.text
    assert answer.status_code == (200 if streamed else 500)
    first, _, third = fake.jobs
    await until(
        lambda: {request for request, _ in fake.cancelled} == {first.request_id, third.request_id}
    )


async def test_a_closed_connection_cancels_all_choices(
    live: str, program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = lambda job: []
    async with httpx.AsyncClient(base_url=live, headers=program.headers) as client:
        asking = asyncio.create_task(
            client.post("/v1/chat/completions", json={**CHAT, "n": 2, "stream": True})
        )
        await until(lambda: len(fake.jobs) == 2)
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await until(
        lambda: {request for request, _ in fake.cancelled} == {job.request_id for job in fake.jobs}
    )


async def test_all_choices_or_none_are_taken(
    program: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.script = lambda job: []
    publish, published = app().submitter.publish, []

    async def two(job: Job) -> Stream:
        published.append(job)
        if len(published) == 3:
            raise Unavailable("the broker left")
        return await publish(job)

    monkeypatch.setattr(app().submitter, "publish", two)
    answer = await program.post("/v1/chat/completions", json={**CHAT, "n": 4})
    assert answer.status_code == 503
    assert [request for request, _ in fake.cancelled] == [job.request_id for job in published[:2]]


@pytest.mark.parametrize(("options", "field"), [({"n": 2}, "n"), ({"logprobs": True}, "logprobs")])
async def test_what_is_not_kept_cannot_be_asked_for_again(
    program: httpx.AsyncClient, fake: FakeClient, options: dict[str, Any], field: str
) -> None:
    answer = await program.post(
        "/v1/chat/completions", json={**CHAT, **options}, headers={"Idempotency-Key": "k"}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert "Idempotency-Key" in answer.json()["error"]["message"]
    assert fake.jobs == []


async def test_as_many_choices_as_openai_makes(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    answer = await program.post("/v1/chat/completions", json={**CHAT, "n": 128, "best_of": 128})
    assert [each["index"] for each in answer.json()["choices"]] == list(range(128))
    assert len(fake.jobs) == 128


async def test_the_copies_of_a_long_prompt_are_bounded(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    body = {"model": "tiny", "prompt": "x" * 900_000}
    answer = await program.post("/v1/completions", json={**body, "n": 9})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    assert fake.jobs == []
    assert (await program.post("/v1/completions", json={**body, "n": 8})).status_code == 200
