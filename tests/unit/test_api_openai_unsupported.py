"""/v1/ refuses unsupported fields by name, unless their value asks for nothing."""

from typing import Any

import httpx
import pytest

from api.idempotency.models import KeptRequest
from api.openai import unsupported
from tests.unit.api_site import FakeClient
from tests.unit.openai_site import CHAT

TEXT = {"model": "tiny", "prompt": "one two"}
PATHS = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]

ASKED = [
    {"suffix": "the end"},
    {"guided_of_tomorrow": 1},
    {"grammar": "root ::= 'a'"},
    {"chat_template": "{{ messages }}"},
    {"modalities": ["text", "audio"]},
    {"audio": {"voice": "alloy", "format": "wav"}},
    {"web_search_options": {}},
    {"logits_processors": ["x"]},
    {"use_beam_search": True},
    {"do_sample": False},
    {"repeat_penalty": 1.1},
    {"max_new_tokens": 5},
    {"num_predict": 5},
    {"stop_sequences": ["x"]},
    {"system": "be brief"},
    {"verbosity": "loud"},
    {"extra_body": {"top_k": 5}},
    {"options": {"temperature": 0}},
]

ASKED_OF_CHAT = [{"echo": True}, {"prompt_logprobs": 0}, {"add_special_tokens": True}]
NEUTRAL = [
    *[
        {name: value}
        for name, found in unsupported.CHAT.items()
        for value in (None, *found.neutral)
    ],
    {"guided_json": None},
    {"guided_decoding_backend": ""},
    {"best_of": 1},
    {"best_of": 1.0},
    {"best_of": 1, "n": 2},
    {"best_of": 2, "n": 2},
    {"min_tokens": 0.0},
    {"length_penalty": 1.0},
    {"parallel_tool_calls": True},
    {"store": False},
    {"metadata": {"topic": "demo"}},
    {"user": "ada"},
    {"stream_options": None},
    {"service_tier": "auto"},
    {"tomorrow": [{"anything": 1}]},
]


@pytest.mark.parametrize(
    ("path", "body", "options"),
    [
        *((path, body, options) for path, body in PATHS for options in ASKED),
        *(("/v1/chat/completions", CHAT, options) for options in ASKED_OF_CHAT),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
async def test_what_would_be_ignored_is_refused_by_name(
    program: httpx.AsyncClient,
    fake: FakeClient,
    path: str,
    body: dict[str, Any],
    options: dict[str, Any],
) -> None:
    [name] = options
    answer = await program.post(
        path, json={**body, **options}, headers={"Idempotency-Key": "refused"}
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (
        400,
        name,
        "unsupported_parameter",
    )
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(f"{name}: not supported here; ")
    assert fake.jobs == []
    assert not await KeptRequest.objects.aexists()


async def test_each_field_of_the_tables_is_refused(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    for name in unsupported.CHAT:
        answer = await program.post(
            "/v1/chat/completions", json={**CHAT, name: {"something": "else"}}
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    assert fake.jobs == []


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"tool_choice": "required"},
        {"functions": [{"name": "f"}]},
        {"reasoning_effort": "high"},
    ],
    ids=lambda options: next(iter(options)),
)
async def test_a_text_has_no_tools(
    program: httpx.AsyncClient, fake: FakeClient, options: dict[str, Any]
) -> None:
    answer = await program.post("/v1/completions", json={**TEXT, **options})
    [name] = options
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, name)
    assert error["code"] == "unsupported_parameter"
    assert fake.jobs == []


async def test_what_asks_for_nothing_passes(program: httpx.AsyncClient, fake: FakeClient) -> None:
    for asked in NEUTRAL:
        answer = await program.post("/v1/chat/completions", json={**CHAT, **asked})
        assert answer.status_code == 200, (asked, answer.text)


@pytest.mark.parametrize(
    "fields",
    [
        {"audio": {"id": "audio_1"}},
    ],
)
async def test_messages_that_would_be_read_in_part(
    program: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    message = {"role": "assistant", "content": None, **fields}
    answer = await program.post(
        "/v1/chat/completions", json={**CHAT, "messages": [*CHAT["messages"], message]}
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, f"messages[1].{next(iter(fields))}")
    assert error["code"] == "unsupported_parameter"
