"""/v1/ accepts every field that well-known clients send for plain chat."""

from typing import Any

import httpx
import pytest

from tests.unit.api_site import FakeClient

ASK = [{"role": "user", "content": "hello"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
CHAT: dict[str, dict[str, Any]] = {
    "curl": {"messages": ASK},
    "openai-python": {"messages": ASK, "stream": False},
    "openai-js": {"messages": ASK, "stream": True, "store": False},
    "langchain": {"messages": ASK, "stream": False, "temperature": 0.7, "n": 1},
    "langchain streaming": {
        "messages": ASK,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "litellm": {"messages": ASK, "temperature": 0.0, "extra_body": {}},
    "llama-index": {"messages": ASK, "temperature": 0.1, "max_tokens": 256, "stop": None},
    "continue": {
        "messages": [{"role": "system", "content": "You are a coder."}, *PARTS],
        "max_tokens": 4096,
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": [],
    },
    "aider": {
        "messages": [*ASK, {"role": "assistant", "content": "Ok."}, *ASK],
        "temperature": 0,
        "stream": True,
    },
    "open-webui": {
        "messages": ASK,
        "stream": True,
        "chat_id": "c",
        "id": "m",
        "session_id": "s",
        "background_tasks": {"title_generation": True},
        "features": {"image_generation": False, "web_search": False},
        "metadata": {"user_id": "u"},
    },
    "lm-eval chat": {
        "messages": [{"role": "user", "content": "hello", "type": "text"}],
        "max_tokens": 256,
        "temperature": 0,
        "stop": ["<|endoftext|>"],
        "seed": 1234,
    },
    "vercel ai": {
        "messages": PARTS,
        "temperature": 0,
        "max_tokens": None,
        "top_p": None,
        "user": None,
        "stream": True,
        "response_format": None,
        "tools": None,
        "tool_choice": None,
    },
    "java": {"messages": ASK, "max_tokens": 8.0, "n": 1.0, "logit_bias": {}, "stop": ""},
    "autogen": {
        "messages": [{"role": "user", "name": "user_proxy", "content": "hello"}],
        "tools": [],
        "stop": None,
    },
    "semantic-kernel": {
        "messages": ASK,
        "temperature": 1,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "max_tokens": 256,
        "stop": [],
        "logit_bias": {},
        "response_format": {"type": "text"},
        "seed": None,
    },
    "sillytavern": {
        "messages": ASK,
        "temperature": 1,
        "max_tokens": 300,
        "stream": True,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_p": 1,
        "top_k": 0,
        "min_p": 0,
        "typical_p": 1,
        "repetition_penalty": 1,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "guided_grammar": None,
        "mirostat_mode": 0,
        "dry_multiplier": 0,
        "xtc_probability": 0,
    },
    "vllm bench": {
        "messages": PARTS,
        "temperature": 0.0,
        "max_completion_tokens": 128,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "top_k": -1,
        "repetition_penalty": 1.0,
        "use_beam_search": False,
        "best_of": 1,
    },
    "dspy": {
        "messages": ASK,
        "temperature": 0.0,
        "max_tokens": 1000,
        "logprobs": False,
        "top_logprobs": 0,
    },
    "librechat": {
        "messages": ASK,
        "user": "u",
        "stream": True,
        "promptPrefix": None,
        "resendFiles": True,
    },
    "spring-ai": {
        "messages": ASK,
        "stream": False,
        "temperature": 0.7,
        "parallel_tool_calls": None,
    },
    "big-agi": {
        "messages": ASK,
        "temperature": 0.5,
        "max_tokens": 1024,
        "n": 1,
        "modalities": ["text"],
    },
}


@pytest.mark.parametrize("sent", CHAT.values(), ids=CHAT.keys())
async def test_plain_chat_of_well_known_clients(
    program: httpx.AsyncClient, fake: FakeClient, sent: dict[str, Any]
) -> None:
    answer = await program.post("/v1/chat/completions", json={"model": "tiny", **sent})
    assert answer.status_code == 200, answer.text
    assert "hello" in answer.text


async def test_what_lm_eval_asks_for_to_score(program: httpx.AsyncClient, fake: FakeClient) -> None:
    sent = {
        "model": "tiny",
        "prompt": [[5, 6], [7]],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = await program.post("/v1/completions", json=sent)
    assert answer.status_code == 200, answer.text
    assert [job.prompt_ids for job in fake.jobs] == [(5, 6), (7,)]
    assert [job.sampling.prompt_logprobs for job in fake.jobs] == [1, 1]
