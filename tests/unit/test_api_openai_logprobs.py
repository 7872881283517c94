"""/v1/: log probabilities in OpenAI's two shapes."""

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from broker.stream import Stream
from broker.wire import Delta, Finished, Job, Sampling, TokenLogprob
from tests.unit.api_site import FakeClient
from tests.unit.openai_site import CHAT, payloads

TREE = "🌳".encode()


def likely(job: Job) -> list[Any]:
    """An answer of four tokens with logprobs; two of them make one character."""
    tokens = [
        TokenLogprob(b"a", -0.25, ((b"a", -0.25), (b"b", -1.5))),
        TokenLogprob(TREE[:2], -1.0, ((b" b", -0.5), (TREE[:2], -1.0))),
        TokenLogprob(TREE[2:], 0.0, ((TREE[2:], 0.0), (b"b", -9999.0))),
        TokenLogprob(b"!", -3.0, ((b"?", -1.0), (b".", -2.0))),
    ]
    most = job.sampling.logprobs
    if most is not None:
        tokens = [msgspec.structs.replace(each, top=each.top[:most]) for each in tokens]
    pieces = [("a", tokens[:1]), ("🌳!", tokens[1:])]
    deltas = [
        Delta(
            request_id=job.request_id,
            text=text,
            tokens=len(each),
            logprobs=() if most is None else tuple(each),
        )
        for text, each in pieces
    ]
    return [
        *deltas,
        Finished(request_id=job.request_id, reason="stop", prompt_tokens=3, completion_tokens=4),
    ]


async def test_logprobs_of_a_chat_answer(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = likely
    body = {**CHAT, "logprobs": True, "top_logprobs": 2}
    choice = (await program.post("/v1/chat/completions", json=body)).json()["choices"][0]
    assert choice["message"]["content"] == "a🌳!"
    content = choice["logprobs"]["content"]
    assert choice["logprobs"]["refusal"] is None
    assert content[0] == {
        "token": "a",
        "logprob": -0.25,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.25, "bytes": [97]},
            {"token": "b", "logprob": -1.5, "bytes": [98]},
        ],
    }
    assert bytes(byte for each in content for byte in each["bytes"]).decode() == "a🌳!"
    streamed = await program.post("/v1/chat/completions", json={**body, "stream": True})
    first, *pieces, last = payloads(streamed.text)
    assert [
        each for piece in pieces for each in piece["choices"][0]["logprobs"]["content"]
    ] == content
    assert (first["choices"][0]["logprobs"], last["choices"][0]["logprobs"]) == (None, None)
    assert [job.sampling.logprobs for job in fake.jobs] == [2, 2]


async def test_logprobs_of_a_text(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = likely
    body = {"model": "tiny", "prompt": "x", "logprobs": 1}
    logprobs = (await program.post("/v1/completions", json=body)).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["a", "bytes:\\xf0\\x9f", "bytes:\\x8c\\xb3", "!"],
        "token_logprobs": [-0.25, -1.0, 0.0, -3.0],
        "top_logprobs": [
            {"a": -0.25},
            {" b": -0.5, "bytes:\\xf0\\x9f": -1.0},  # the chosen token is always among them
            {"bytes:\\x8c\\xb3": 0.0},
            {"?": -1.0, "!": -3.0},
        ],
        "text_offset": [0, 1, 1, 2],
    }
    streamed = await program.post("/v1/completions", json={**body, "stream": True})
    *pieces, _ = payloads(streamed.text)
    streamed_logprobs = [piece["choices"][0]["logprobs"] for piece in pieces]
    assert {
        name: [each for one in streamed_logprobs for each in one[name]] for name in logprobs
    } == logprobs


@pytest.mark.parametrize("options", [{"logprobs": False}, {"logprobs": None, "top_logprobs": None}])
async def test_who_asks_for_no_logprobs_gets_none(
    program: httpx.AsyncClient, fake: FakeClient, options: dict[str, Any]
) -> None:
    fake.script = likely
    answer = await program.post("/v1/chat/completions", json={**CHAT, **options})
    assert answer.json()["choices"][0]["logprobs"] is None
    assert fake.jobs[0].sampling.logprobs is None


async def test_an_engine_without_logprobs_says_null(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    asked = {**CHAT, "logprobs": True}
    assert (await program.post("/v1/chat/completions", json=asked)).json()["choices"][0][
        "logprobs"
    ] is None
    assert fake.jobs[0].sampling.logprobs == 0


def test_logprobs_of_text_that_nobody_has_read_stay_in_order() -> None:
    job = Job(
        request_id="r",
        model="m",
        reply_to="q",
        created=0,
        prompt="x",
        sampling=Sampling(logprobs=2),
    )

    async def read() -> list[Any]:
        stream = Stream(job, lambda _: None)
        for number, frame in enumerate(likely(job)):
            stream.push(msgspec.structs.replace(frame, seq=number))
        return [frame async for frame in stream]

    joined, end = asyncio.run(read())
    assert joined.text == "a🌳!"
    assert joined.logprobs == sum((frame.logprobs for frame in likely(job)[:-1]), ())
    assert end.reason == "stop"
