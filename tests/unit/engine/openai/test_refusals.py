"""Refusals and errors of a server, and whose fault they are."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from tests.unit.engine.openai.runs import before, chat, error_of, read, whole
from tests.unit.engine.upstream import (
    DONE,
    Asked,
    Reply,
    answering,
    refusing,
)
from worker.engines.openai import engine as openai
from worker.engines.openai.errors import MAX_PAUSE_SECONDS, Refusal


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (
            400,
            {
                "error": {
                    "message": "This model's maximum context length is 4096 tokens. However, …"
                }
            },
            "too_long",
        ),
        (
            400,
            {
                "object": "error",
                "message": "However, the model's context length is only 1024 tokens",
            },
            "too_long",
        ),
        (
            400,
            {
                "message": "The input (9 tokens) is longer than "
                "the model's context length (8 tokens)."
            },
            "too_long",
        ),
        (
            400,
            {"error": {"type": "exceed_context_size_error", "message": "request (9) exceeds"}},
            "too_long",
        ),
        (
            500,
            {"error": {"type": "exceed_context_size_error", "message": "request (9) exceeds"}},
            "too_long",
        ),
        (
            400,
            {"error": {"code": "context_length_exceeded", "message": "messages: too much"}},
            "too_long",
        ),
        (413, b"", "too_long"),
        (400, {"error": {"message": "roles must alternate"}}, "invalid"),
        (422, {"detail": [{"loc": ["body", "stop"], "msg": "too many"}]}, "invalid"),
        (403, {"error": "moderated"}, "invalid"),
        (402, b"pay first", "invalid"),
    ],
)
async def test_the_jobs_own_fault_is_final(status: int, body: Any, code: str) -> None:
    async with before(refusing(status, body)) as (engine, upstream):
        error = await error_of(engine, chat(top_k=3))
        assert (error.code, error.retryable) == (code, False)
    assert len(upstream.asked) == 1


@pytest.mark.parametrize(
    ("status", "alone", "blamed"),
    [(500, True, True), (408, True, True), (401, False, True), (404, False, True)],
)
async def test_the_servers_fault_is_tried_again_elsewhere(
    status: int,
    alone: bool,
    blamed: bool,
    short_pauses: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai, "FAULT_SECONDS", 0.1)
    async with before(refusing(status, {"error": {"message": "no luck"}})) as (engine, _):
        error = await error_of(engine, chat())
        assert (error.retryable, error.isolated, error.suspect) == (
            True,
            alone,
            blamed,
        )
        assert "no luck" in str(error)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        ({"message": "CUDA error", "code": 500}, "engine", True),
        ({"message": "no room", "code": None, "type": "server_error"}, "engine", True),
        ("something", "engine", True),
        ({"message": "prompt is too long", "code": 400}, "too_long", False),
        (
            {"message": "bad", "type": "invalid_request_error", "code": "invalid_request"},
            "invalid",
            False,
        ),
    ],
)
@pytest.mark.parametrize("form", [b'data: {"error": %s}\n\n', b"error: %s\n\n"])
async def test_an_error_inside_the_stream(
    error: Any, code: str, retryable: bool, form: bytes
) -> None:
    async def script(asked: Asked, reply: Reply) -> None:
        await reply.begin()
        await reply.write(form % json.dumps(error).encode() + DONE)
        await reply.end()

    async with before(script) as (engine, _):
        found = await error_of(engine, chat())
        assert (found.code, found.retryable) == (code, retryable)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_busy_server_is_asked_again(status: int, short_pauses: None) -> None:
    busy = refusing(status, {"error": {"message": "slow down"}})
    async with before(busy, busy, answering("at last")) as (engine, upstream):
        assert whole(await read(engine, chat()))[0] == "at last"
        assert len(upstream.asked) == 3


async def test_a_server_that_stays_busy_gets_its_job_taken_back_and_nobody_is_blamed(
    short_pauses: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock of its own: each refusal takes 40 of the 100 ms for which it is asked."""
    now = 0.0
    monkeypatch.setattr(openai, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(openai, "time", SimpleNamespace(monotonic=lambda: now))
    refuse = refusing(503, {"error": "full"}, "Retry-After: 0.05")

    async def slowly_refuse(request: Asked, reply: Reply) -> None:
        nonlocal now
        now += 0.04
        await refuse(request, reply)

    async with before(slowly_refuse) as (engine, upstream):
        error = await error_of(engine, chat())
        assert not error.suspect
        assert error.isolated
        assert len(upstream.asked) == 2


@pytest.mark.parametrize(
    ("asked", "pause"),
    [
        ("", 1.0),
        ("3", 3.0),
        ("0", 1.0),
        ("-5", 1.0),
        ("86400", MAX_PAUSE_SECONDS),
        ("nan", 1.0),
        ("Wed", 1.0),
    ],
)
def test_retry_after_is_honoured_within_bounds(asked: str, pause: float) -> None:
    assert Refusal(429, "", asked).pause(1.0) == pause


@pytest.mark.parametrize(
    "complaint",
    [
        {"error": {"message": "Unrecognized request argument supplied: top_k"}},
        {"error": {"message": "Unknown parameter: 'top_k'."}},
        {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", "top_k"],
                    "msg": "Extra inputs are not permitted",
                }
            ]
        },
    ],
)
async def test_fields_that_a_server_does_not_know_are_left_out_for_good(complaint: Any) -> None:
    async def strict(request: Asked, reply: Reply) -> None:
        if "top_k" in request.body:
            await reply.whole(422 if "detail" in complaint else 400, complaint)
        else:
            await answering("fine")(request, reply)

    async with before(strict) as (engine, upstream):
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                assert whole(await read(engine, chat(top_k=3)))[0] == "fine"
    assert ["top_k" in request.body for request in upstream.asked] == [True, False, False]
    assert [line["fields"] for line in logs if "fields" in line] == [["top_k"]]


async def test_a_limit_that_was_asked_for_is_never_left_out() -> None:
    complaint = {"error": {"message": "unsupported value of max_tokens"}}
    async with before(refusing(400, complaint)) as (engine, upstream):
        assert (await error_of(engine, chat(max_tokens=3))).code == "invalid"
        assert len(upstream.asked) == 1
