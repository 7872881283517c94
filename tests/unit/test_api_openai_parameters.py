"""/v1/: the parameters of vLLM's that reach a node, and what is accepted and ignored."""

from typing import Any

import httpx
import pytest

from tests.unit.api_site import FakeClient
from tests.unit.openai_site import CHAT

TEXT = {"model": "tiny", "prompt": "one two"}
PATHS = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]
PREFILLED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]


@pytest.mark.parametrize(("path", "body"), PATHS)
async def test_how_an_answer_ends(
    program: httpx.AsyncClient, fake: FakeClient, path: str, body: dict[str, Any]
) -> None:
    fields = {
        "min_tokens": 3,
        "ignore_eos": True,
        "stop_token_ids": [7, 9],
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
    }
    assert (await program.post(path, json={**body, **fields})).status_code == 200
    sampling = fake.jobs[0].sampling
    assert (sampling.min_tokens, sampling.ignore_eos) == (3, True)
    assert sampling.stop_token_ids == (7, 9)
    assert (sampling.skip_special_tokens, sampling.include_stop) == (False, True)
    assert (await program.post(path, json={**body, **dict.fromkeys(fields)})).status_code == 200
    assert fake.jobs[1].sampling.skip_special_tokens
    assert fake.jobs[1].sampling.stop_token_ids == ()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"min_tokens": -1}, "min_tokens"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
        (
            {"chat_template_kwargs": {str(number): 1 for number in range(33)}},
            "chat_template_kwargs",
        ),
        ({"chat_template_kwargs": {"a": "x" * 9000}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "prefix": True}]}, "messages"),
    ],
)
async def test_what_is_out_of_bounds(
    program: httpx.AsyncClient, fake: FakeClient, fields: dict[str, Any], field: str
) -> None:
    answer = await program.post("/v1/chat/completions", json={**CHAT, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text
    assert fake.jobs == []


async def test_what_the_template_is_told(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fields = {"chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": False}
    assert (await program.post("/v1/chat/completions", json={**CHAT, **fields})).status_code == 200
    [job] = fake.jobs
    assert job.template_arguments == '{"enable_thinking":false}'
    assert not job.add_generation_prompt
    assert not job.continue_final_message


@pytest.mark.parametrize("name", ["continue_final_message", "prefix", "partial"])
async def test_an_answer_that_is_begun(
    program: httpx.AsyncClient, fake: FakeClient, name: str
) -> None:
    body: dict[str, Any] = {"model": "tiny", "messages": [dict(turn) for turn in PREFILLED]}
    (body if name == "continue_final_message" else body["messages"][-1])[name] = True
    assert (await program.post("/v1/chat/completions", json=body)).status_code == 200
    assert fake.jobs[0].continue_final_message


async def test_a_last_assistants_turn_alone_is_not_continued(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    body = {"model": "tiny", "messages": PREFILLED}
    assert (await program.post("/v1/chat/completions", json=body)).status_code == 200
    assert not fake.jobs[0].continue_final_message


async def test_a_prediction_changes_nothing(program: httpx.AsyncClient, fake: FakeClient) -> None:
    body = {**CHAT, "prediction": {"type": "content", "content": "x"}, "store": True}
    assert (await program.post("/v1/chat/completions", json=body)).status_code == 200
    plain = await program.post("/v1/chat/completions", json=CHAT)
    assert plain.status_code == 200
    assert fake.jobs[0].sampling == fake.jobs[1].sampling


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
async def test_images_and_sounds_are_refused_in_words(
    program: httpx.AsyncClient, fake: FakeClient, kind: str
) -> None:
    content = [{"type": "text", "text": "What is it?"}, {"type": kind, kind: {}}]
    body = {**CHAT, "messages": [{"role": "user", "content": content}]}
    answer = await program.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert f"part 1 is of type {kind}; only text is understood" in answer.json()["error"]["message"]
