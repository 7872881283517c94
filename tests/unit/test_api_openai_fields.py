"""The fields of a request to /v1/: what of them reaches the job, and what is refused by name."""

import json
from typing import Any

import httpx
import pytest

from api.idempotency.models import KeptRequest
from broker.encoding import encode
from broker.wire import Sampling
from tests.unit.api_site import FakeClient
from tests.unit.openai_site import CHAT


async def test_sampling_and_roles_reach_the_job(
    program: httpx.AsyncClient, fake: FakeClient, user: Any
) -> None:
    body = {
        "model": "tiny",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
        ],
        "max_tokens": 5,
        "max_completion_tokens": 7,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 9,
        "seed": -4,
        "stop": "END",
        "min_p": 0.05,
        "repetition_penalty": 1.2,
        "frequency_penalty": -2,
        "presence_penalty": 2.0,
        "logit_bias": {"50256": -100, "17": 1.5},
        "tools_of_tomorrow": "ignored",
        "n": 1,
    }
    assert (await program.post("/v1/chat/completions", json=body)).status_code == 200
    job = fake.jobs[0]
    assert job.messages is not None
    assert [(turn.role, turn.content) for turn in job.messages] == [
        ("system", "be brief"),
        ("user", "a\nb"),
    ]
    sampling = job.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0, 0.5)
    assert (sampling.top_k, sampling.seed, sampling.stop) == (9, -4, ("END",))
    assert (sampling.min_p, sampling.repetition_penalty) == (0.05, 1.2)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (-2, 2)
    assert sampling.logit_bias == {50256: -100, 17: 1.5}
    assert job.user == user.username


async def test_what_is_not_asked_for_makes_no_job_longer(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    plain = {"temperature": None, "logit_bias": {}, "presence_penalty": None}
    assert (await program.post("/v1/chat/completions", json={**CHAT, **plain})).status_code == 200
    assert fake.jobs[0].sampling == Sampling()
    assert json.loads(encode(fake.jobs[0]))["sampling"] == {}


async def test_as_many_biases_as_openai_takes(program: httpx.AsyncClient, fake: FakeClient) -> None:
    biases = {str(token): -100 for token in range(1024)}
    assert (
        await program.post(
            "/v1/completions", json={"model": "tiny", "prompt": "a", "logit_bias": biases}
        )
    ).is_success
    assert len(fake.jobs[0].sampling.logit_bias) == 1024


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": 3, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": 5}]}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "user", "content": "x"}, "hello"]}, "messages[1]"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"frequency_penalty": "1"}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"presence_penalty": False}, "presence_penalty"),
        ({"logit_bias": [17]}, "logit_bias"),
        ({"logit_bias": {"tree": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1" * 10: 1}}, "logit_bias"),
        ({"logit_bias": {"17": 100.5}}, "logit_bias"),
        ({"logit_bias": {"17": "1"}}, "logit_bias"),
        ({"logit_bias": {"17": True}}, "logit_bias"),
        ({"logit_bias": {"17": None}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["", 3]}, "stop[0]"),
        ({"stop": ["a" * 501]}, "stop[0]"),
        ({"stop": 3}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": "yes"}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 3, "logprobs": False}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"service_tier": 1}, "service_tier"),
        ({"stream_options": {"include_usage": 3}}, "stream_options.include_usage"),
    ],
)
async def test_wrong_fields_are_named(
    program: httpx.AsyncClient, change: dict[str, Any], field: str
) -> None:
    answer = await program.post("/v1/chat/completions", json={**CHAT, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (
        400,
        field,
        "invalid_request_error",
    )
    assert error["message"].startswith(field)


@pytest.mark.parametrize(
    "prompt", [None, 3, [], ["a", 1], [1, "a"], [[]], [["a"]], [None], {"text": "a"}]
)
async def test_wrong_prompts_are_named(program: httpx.AsyncClient, prompt: Any) -> None:
    answer = await program.post("/v1/completions", json={"model": "tiny", "prompt": prompt})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[1, 2]",
        b'"text"',
        b"\xff\xfe\x00",
        b'{"model": "tiny", "messages": "\xff"}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"model": "tiny", "temperature": NaN}',
    ],
)
async def test_what_is_not_json_is_refused(program: httpx.AsyncClient, body: bytes) -> None:
    answer = await program.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] in ("body", "model", "messages")


@pytest.mark.parametrize("logprobs", [-1, 6, True, "1"])
async def test_wrong_logprobs_of_a_text_are_named(
    program: httpx.AsyncClient, logprobs: Any
) -> None:
    answer = await program.post(
        "/v1/completions", json={"model": "tiny", "prompt": "a", "logprobs": logprobs}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logprobs")


@pytest.mark.parametrize(
    ("asked", "field", "value"),
    [
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 8.0}, "top_k", 8),
        ({"max_tokens": 8.0}, "max_tokens", 8),
        ({"max_completion_tokens": 8.0}, "max_tokens", 8),
        ({"seed": -7.0}, "seed", -7),
        ({"logprobs": True, "top_logprobs": 2.0}, "logprobs", 2),
        ({"logprobs": False, "top_logprobs": 0}, "logprobs", None),
        ({"top_logprobs": 0}, "logprobs", None),
        ({"stop": ""}, "stop", ()),
        ({"stop": [""]}, "stop", ()),
        ({"stop": ["", "END", ""]}, "stop", ("END",)),
        ({"stop": []}, "stop", ()),
        ({"stop": None}, "stop", ()),
        ({"stop": [""] * 40}, "stop", ()),
        ({"temperature": 1}, "temperature", 1.0),
        ({"n": 1.0}, "max_tokens", None),
    ],
)
async def test_what_everybody_sends_is_taken(
    program: httpx.AsyncClient, fake: FakeClient, asked: dict[str, Any], field: str, value: Any
) -> None:
    answer = await program.post("/v1/chat/completions", json={**CHAT, **asked})
    assert answer.status_code == 200, answer.text
    assert getattr(fake.jobs[0].sampling, field) == value


@pytest.mark.parametrize(("logprobs", "expected"), [(False, None), (0, 0), (2.0, 2), (None, None)])
async def test_logprobs_of_a_text_are_a_number(
    program: httpx.AsyncClient, fake: FakeClient, logprobs: Any, expected: int | None
) -> None:
    answer = await program.post(
        "/v1/completions", json={"model": "tiny", "prompt": "a", "logprobs": logprobs}
    )
    assert answer.status_code == 200, answer.text
    assert fake.jobs[0].sampling.logprobs == expected


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "assistant", "content": None}, ""),
        ({"role": "assistant"}, ""),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [],
                "function_call": None,
                "audio": None,
            },
            "",
        ),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "no"),
        (
            {
                "role": "assistant",
                "content": [{"type": "output_text", "text": "a", "annotations": []}],
            },
            "a",
        ),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "because", "refusal": None},
            "a",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            "a\nb",
        ),
        ({"role": "user", "content": ["a", "b"]}, "a\nb"),
        ({"role": "user", "content": []}, ""),
        ({"role": "user", "content": "a", "name": "ada"}, "a"),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
            },
            "a",
        ),
    ],
)
async def test_messages_as_clients_write_them(
    program: httpx.AsyncClient, fake: FakeClient, message: dict[str, Any], text: str
) -> None:
    answer = await program.post(
        "/v1/chat/completions", json={**CHAT, "messages": [*CHAT["messages"], message]}
    )
    assert answer.status_code == 200, answer.text
    messages = fake.jobs[0].messages
    assert messages is not None
    assert (messages[-1].role, messages[-1].content) == (message["role"], text)


async def test_an_image_is_refused_in_plain_words(program: httpx.AsyncClient) -> None:
    content = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "x"}},
    ]
    answer = await program.post(
        "/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": content}]}
    )
    assert answer.json()["error"]["message"] == (
        "messages[0].content: part 1 is of type image_url; only text is understood"
    )


@pytest.mark.parametrize("name", ["模" * 86, "x" * 256, "x" * 10_000])
@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "long name"}])
async def test_a_name_that_is_too_long_is_no_models(
    program: httpx.AsyncClient, fake: FakeClient, name: str, key: dict[str, str]
) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        answer = await program.post(path, json={**CHAT, "prompt": "a", "model": name}, headers=key)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (
            404,
            "model_not_found",
            "model",
        )
        assert len(error["message"]) < 300
    assert fake.jobs == []
    assert not await KeptRequest.objects.aexists()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 5}),
    ],
)
async def test_a_top_p_of_0_takes_the_likeliest_token(
    path: str, fields: dict[str, Any], program: httpx.AsyncClient, fake: FakeClient
) -> None:
    """As OpenAI's and Anthropic's clients may say it; nodes take what is above 0."""
    answer = await program.post(path, json={"model": "tiny", "top_p": 0, **fields})
    assert answer.status_code == 200
    assert 0 < fake.jobs[-1].sampling.top_p < 1e-6
