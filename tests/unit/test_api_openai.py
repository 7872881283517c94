"""/v1/: shapes, streams, refusals."""

import asyncio
import json
from typing import Any

import httpx
import msgspec
import pytest

from api import line
from broker.client import Unavailable
from broker.stream import Stream
from broker.wire import Delta, Failed, Finished, Job, Sampling, TokenLogprob, Waiting, decode, encode
from tests.unit.api_site import FakeClient, browser, echo, node_state, submission, until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}]}


def events(text: str) -> list[str]:
    """The lines of a stream that carry something."""
    return [line for line in text.split("\n\n") if line]


def payloads(text: str) -> list[dict[str, Any]]:
    """The JSON of a stream's data events."""
    return [json.loads(line[6:]) for line in events(text) if line.startswith("data: {")]


async def test_chat_completion_has_openais_shape(program: httpx.AsyncClient, fake: FakeClient) -> None:
    answer = await program.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200
    found = answer.json()
    request_id = answer.headers["X-Request-Id"]
    assert found.pop("created") > 1_700_000_000
    assert found == {
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


async def test_sampling_and_roles_reach_the_job(program: httpx.AsyncClient, fake: FakeClient, user: Any) -> None:
    body = {
        "model": "tiny",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
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
    assert [(turn.role, turn.content) for turn in job.messages] == [("system", "be brief"), ("user", "ab")]
    sampling = job.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0, 0.5)
    assert (sampling.top_k, sampling.seed, sampling.stop) == (9, -4, ("END",))
    assert (sampling.min_p, sampling.repetition_penalty) == (0.05, 1.2)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (-2, 2)
    assert sampling.logit_bias == {50256: -100, 17: 1.5}
    assert job.user == user.username


async def test_what_is_not_asked_for_makes_no_job_longer(program: httpx.AsyncClient, fake: FakeClient) -> None:
    plain = {"temperature": None, "logit_bias": {}, "presence_penalty": None}
    assert (await program.post("/v1/chat/completions", json={**CHAT, **plain})).status_code == 200
    assert fake.jobs[0].sampling == Sampling()
    assert json.loads(encode(fake.jobs[0]))["sampling"] == {}


async def test_as_many_biases_as_openai_takes(program: httpx.AsyncClient, fake: FakeClient) -> None:
    biases = {str(token): -100 for token in range(1024)}
    assert (
        await program.post("/v1/completions", json={"model": "tiny", "prompt": "a", "logit_bias": biases})
    ).is_success
    assert len(fake.jobs[0].sampling.logit_bias) == 1024


async def test_completion_has_openais_shape(program: httpx.AsyncClient, fake: FakeClient) -> None:
    found = (await program.post("/v1/completions", json={"model": "tiny", "prompt": ["a b"]})).json()
    assert found["object"] == "text_completion"
    assert found["id"].startswith("cmpl-")
    assert found["choices"] == [{"index": 0, "logprobs": None, "text": "a b", "finish_reason": "stop"}]
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
    assert last["choices"][0] == {"index": 0, "logprobs": None, "delta": {}, "finish_reason": "stop"}
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 6
    assert len({piece["id"] for piece in (first, *pieces, last, usage)}) == 1


async def test_text_stream_without_usage(program: httpx.AsyncClient) -> None:
    answer = await program.post("/v1/completions", json={"model": "tiny", "prompt": "a b", "stream": True})
    *pieces, last = payloads(answer.text)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == "a b"
    assert last["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in piece for piece in (*pieces, last))
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"model": "x" * 201}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": 3, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
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
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
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
        ({"stop": [""]}, "stop[0]"),
        ({"stop": 3}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
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
async def test_wrong_fields_are_named(program: httpx.AsyncClient, change: dict[str, Any], field: str) -> None:
    answer = await program.post("/v1/chat/completions", json={**CHAT, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, field, "invalid_request_error")
    assert error["message"].startswith(field)


@pytest.mark.parametrize("prompt", [None, 3, ["a", "b"], [1, 2], {"text": "a"}])
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
async def test_wrong_logprobs_of_a_text_are_named(program: httpx.AsyncClient, logprobs: Any) -> None:
    answer = await program.post("/v1/completions", json={"model": "tiny", "prompt": "a", "logprobs": logprobs})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logprobs")


async def test_unknown_model_lists_the_models(program: httpx.AsyncClient) -> None:
    answer = await program.post("/v1/chat/completions", json={**CHAT, "model": "gpt-9"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "tiny" in error["message"]
    assert "big" in error["message"]


async def test_known_model_without_a_tree_is_unavailable(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.trees = set()
    answer = await program.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_tree")


async def test_no_broker_is_503(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.connected = False
    answer = await program.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "service_unavailable_error")
    assert answer.headers["Retry-After"]


async def test_models(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.states["n2"] = node_state("n2", model="third")
    found = (await program.get("/v1/models")).json()
    assert found["object"] == "list"
    assert [each["id"] for each in found["data"]] == ["tiny", "big", "third"]
    assert found["data"][0]["object"] == "model"
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
    program: httpx.AsyncClient, fake: FakeClient, code: Any, retryable: bool, status: int, param: str | None
) -> None:
    fake.script = lambda job: [Failed(request_id=job.request_id, code=code, message="because", retryable=retryable)]
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
    fake.script = lambda job: [Waiting(request_id=job.request_id, node="root", reason="all busy"), *echo(job)]
    streamed = await program.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert ": waiting: all busy" in events(streamed.text)


async def test_the_place_in_the_line_is_told(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: [
        Waiting(request_id=job.request_id, node="root", reason="every slot is busy", position=12, seconds=31.0),
        *echo(job),
    ]
    streamed = await program.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert ": waiting: number 12 in line, starts in about 30 s (every slot is busy)" in events(streamed.text)
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
    frame = Waiting(request_id="r", node="root", reason="all busy", position=position, seconds=seconds)
    assert line.in_words(frame) == words


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
    assert line.roughly(seconds) == words


# ---- logprobs

TREE = "🌳".encode()


def likely(job: Job) -> list[Any]:
    """An answer of four tokens, with the logprobs that the job asks for; two of them are one character."""
    told = [
        TokenLogprob(b"a", -0.25, ((b"a", -0.25), (b"b", -1.5))),
        TokenLogprob(TREE[:2], -1.0, ((b" b", -0.5), (TREE[:2], -1.0))),
        TokenLogprob(TREE[2:], 0.0, ((TREE[2:], 0.0), (b"b", -9999.0))),
        TokenLogprob(b"!", -3.0, ((b"?", -1.0), (b".", -2.0))),
    ]
    most = job.sampling.logprobs
    if most is not None:
        told = [msgspec.structs.replace(each, top=each.top[:most]) for each in told]
    pieces = [("a", told[:1]), ("🌳!", told[1:])]
    deltas = [
        Delta(request_id=job.request_id, text=text, tokens=len(each), logprobs=() if most is None else tuple(each))
        for text, each in pieces
    ]
    return [*deltas, Finished(request_id=job.request_id, reason="stop", prompt_tokens=3, completion_tokens=4)]


async def test_logprobs_of_a_chat_answer(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = likely
    asked = {**CHAT, "logprobs": True, "top_logprobs": 2}
    choice = (await program.post("/v1/chat/completions", json=asked)).json()["choices"][0]
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
    streamed = await program.post("/v1/chat/completions", json={**asked, "stream": True})
    first, *pieces, last = payloads(streamed.text)
    assert [each for piece in pieces for each in piece["choices"][0]["logprobs"]["content"]] == content
    assert (first["choices"][0]["logprobs"], last["choices"][0]["logprobs"]) == (None, None)
    assert [job.sampling.logprobs for job in fake.jobs] == [2, 2]


async def test_logprobs_of_a_text(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = likely
    asked = {"model": "tiny", "prompt": "x", "logprobs": 1}
    found = (await program.post("/v1/completions", json=asked)).json()["choices"][0]["logprobs"]
    assert found == {
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
    streamed = await program.post("/v1/completions", json={**asked, "stream": True})
    *pieces, _ = payloads(streamed.text)
    told = [piece["choices"][0]["logprobs"] for piece in pieces]
    assert {name: [each for one in told for each in one[name]] for name in found} == found


@pytest.mark.parametrize("asked", [{"logprobs": False}, {"logprobs": None, "top_logprobs": None}])
async def test_who_asks_for_no_logprobs_gets_none(
    program: httpx.AsyncClient, fake: FakeClient, asked: dict[str, Any]
) -> None:
    fake.script = likely
    answer = await program.post("/v1/chat/completions", json={**CHAT, **asked})
    assert answer.json()["choices"][0]["logprobs"] is None
    assert fake.jobs[0].sampling.logprobs is None


async def test_an_engine_without_logprobs_says_null(program: httpx.AsyncClient, fake: FakeClient) -> None:
    asked = {**CHAT, "logprobs": True}
    assert (await program.post("/v1/chat/completions", json=asked)).json()["choices"][0]["logprobs"] is None
    assert fake.jobs[0].sampling.logprobs == 0


def test_logprobs_of_text_that_nobody_has_read_stay_in_order() -> None:
    job = Job(request_id="r", model="m", reply_to="q", created=0, prompt="x", sampling=Sampling(logprobs=2))

    async def read() -> list[Any]:
        stream = Stream(job, lambda _: None)
        for number, frame in enumerate(likely(job)):
            stream.push(msgspec.structs.replace(frame, seq=number))
        return [frame async for frame in stream]

    joined, end = asyncio.run(read())
    assert joined.text == "a🌳!"
    assert joined.logprobs == sum((frame.logprobs for frame in likely(job)[:-1]), ())
    assert end.reason == "stop"


# ---- several choices


def numbered(fake: FakeClient) -> None:
    """Every job's answer says which one it is."""
    fake.script = lambda job: echo(msgspec.structs.replace(job, messages=None, prompt=f"choice {len(fake.jobs)}"))


async def test_choices_are_jobs_of_their_own(program: httpx.AsyncClient, fake: FakeClient) -> None:
    numbered(fake)
    answer = await program.post("/v1/chat/completions", json={**CHAT, "n": 3, "seed": 2**63 - 2})
    found = answer.json()
    told = [(each["index"], each["message"]["content"], each["finish_reason"]) for each in found["choices"]]
    assert told == [(0, "choice 1", "stop"), (1, "choice 2", "stop"), (2, "choice 3", "stop")]
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    assert answer.headers["X-Request-Id"] == fake.jobs[0].request_id
    assert found["id"] == f"chatcmpl-{fake.jobs[0].request_id}"
    assert len({job.request_id for job in fake.jobs}) == 3
    assert [job.sampling.seed for job in fake.jobs] == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert all(job.sampling.reproducible for job in fake.jobs)
    assert all(decode(encode(job), Job) == job for job in fake.jobs)


async def test_choices_without_a_seed_have_none(program: httpx.AsyncClient, fake: FakeClient) -> None:
    assert (await program.post("/v1/completions", json={"model": "tiny", "prompt": "a", "n": 2})).is_success
    assert [job.sampling.seed for job in fake.jobs] == [None, None]
    assert not any(job.sampling.reproducible for job in fake.jobs)


async def test_streamed_choices_interleave(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: []
    body = {"model": "tiny", "prompt": "x", "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    asked = asyncio.create_task(program.post("/v1/completions", json=body))
    await until(lambda: len(fake.jobs) == 2)
    one, two = (job.request_id for job in fake.jobs)
    for index, (request_id, text) in enumerate([(one, "a"), (two, "b"), (one, "c"), (two, "d")]):
        fake.push(Delta(request_id=request_id, text=text))
        await until(lambda index=index: sum(len(stream._unread) for stream in fake.streams.values()) == 0)
    fake.push(Finished(request_id=two, reason="length", prompt_tokens=5, completion_tokens=2))
    fake.push(Delta(request_id=one, text="e"))
    fake.push(Finished(request_id=one, reason="stop", prompt_tokens=5, completion_tokens=3))
    text = (await asked).text
    *chunks, usage = payloads(text)
    told = [(each["index"], each["text"], each["finish_reason"]) for chunk in chunks for each in chunk["choices"]]
    assert [each for each in told if each[0] == 0] == [(0, "a", None), (0, "c", None), (0, "e", None), (0, "", "stop")]
    assert [each for each in told if each[0] == 1] == [(1, "b", None), (1, "d", None), (1, "", "length")]
    assert [index for index, *_ in told[:4]] == [0, 1, 0, 1]
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    assert len({chunk["id"] for chunk in (*chunks, usage)}) == 1
    assert text.count("[DONE]") == 1


async def test_streamed_chat_choices_begin_with_a_role_each(program: httpx.AsyncClient, fake: FakeClient) -> None:
    numbered(fake)
    answer = await program.post("/v1/chat/completions", json={**CHAT, "n": 2, "stream": True})
    choices = [choice for chunk in payloads(answer.text) for choice in chunk["choices"]]
    for index in range(2):
        first, *rest, last = [choice for choice in choices if choice["index"] == index]
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"]["content"] for choice in rest) == f"choice {index + 1}"
        assert last["finish_reason"] == "stop"


@pytest.mark.parametrize("streamed", [True, False])
async def test_one_choice_that_fails_ends_all(program: httpx.AsyncClient, fake: FakeClient, streamed: bool) -> None:
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
    await until(lambda: {request for request, _ in fake.cancelled} == {first.request_id, third.request_id})


async def test_a_closed_connection_cancels_all_choices(live: str, program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: []
    async with httpx.AsyncClient(base_url=live, headers=program.headers) as client:
        asked = asyncio.create_task(client.post("/v1/chat/completions", json={**CHAT, "n": 2, "stream": True}))
        await until(lambda: len(fake.jobs) == 2)
        await asyncio.sleep(0.05)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    await until(lambda: {request for request, _ in fake.cancelled} == {job.request_id for job in fake.jobs})


async def test_all_choices_or_none_are_taken(
    program: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.script = lambda job: []
    publish, published = submission.publish, []

    async def two(job: Job) -> Stream:
        published.append(job)
        if len(published) == 3:
            raise Unavailable("the broker left")
        return await publish(job)

    monkeypatch.setattr(submission, "publish", two)
    answer = await program.post("/v1/chat/completions", json={**CHAT, "n": 4})
    assert answer.status_code == 503
    assert [request for request, _ in fake.cancelled] == [job.request_id for job in published[:2]]


@pytest.mark.parametrize(("asked", "field"), [({"n": 2}, "n"), ({"logprobs": True}, "logprobs")])
async def test_what_is_not_kept_cannot_be_asked_for_again(
    program: httpx.AsyncClient, fake: FakeClient, asked: dict[str, Any], field: str
) -> None:
    answer = await program.post("/v1/chat/completions", json={**CHAT, **asked}, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert "Idempotency-Key" in answer.json()["error"]["message"]
    assert fake.jobs == []


# ---- classes


@pytest.mark.parametrize(
    ("asked", "job_class", "told"),
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
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", {"model": "tiny", "prompt": "a b"})]
)
async def test_the_service_tier_is_the_jobs_class(
    program: httpx.AsyncClient, fake: FakeClient, path: str, body: dict[str, Any], asked: str, job_class: str, told: str
) -> None:
    whole = await program.post(path, json={**body, "service_tier": asked})
    assert whole.json()["service_tier"] == told
    options = {"stream": True, "stream_options": {"include_usage": True}, "service_tier": asked}
    streamed = await program.post(path, json={**body, **options})
    assert {chunk["service_tier"] for chunk in payloads(streamed.text)} == {told}
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
    from api import sse

    monkeypatch.setattr(sse, "KEEPALIVE", 0.02)
    fake.script = lambda job: []
    asked = asyncio.create_task(program.post("/v1/chat/completions", json={**CHAT, "stream": True}))
    await fake.submitted.wait()
    await asyncio.sleep(0.2)
    fake.push(Finished(request_id=fake.jobs[0].request_id, reason="stop"))
    assert ": keep-alive" in events((await asked).text)


async def test_bodies_that_are_too_large(program: httpx.AsyncClient) -> None:
    for size in (1_000_001, 1 << 20, 3 << 20):
        answer = await program.post("/v1/chat/completions", content=b"x" * size)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    elsewhere = await program.post("/arranca/", content=b"x" * (1 << 20))
    assert elsewhere.status_code == 413
    assert set(elsewhere.json()["error"]) == {"message", "field"}
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

    asked = [asyncio.create_task(ask(number)) for number in range(1000)]
    await until(lambda: len(fake.jobs) == 1000, seconds=30)
    frames = [echo(job) for job in fake.jobs]
    for step in range(4):  # start, two words, end: interleaved between all requests, last one first
        for each in reversed(frames):
            fake.push(each[step])
    answers = await asyncio.gather(*asked)
    assert answers == [(number, f"question {number}") for number in range(1000)]
    assert fake.cancelled == []


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_closed_connection_cancels_the_job(
    live: str, program: httpx.AsyncClient, fake: FakeClient, streamed: bool
) -> None:
    fake.script = lambda job: []
    async with httpx.AsyncClient(base_url=live, headers=program.headers) as client:
        asked = asyncio.create_task(client.post("/v1/chat/completions", json={**CHAT, "stream": streamed}))
        await fake.submitted.wait()
        await asyncio.sleep(0.05)
        assert fake.cancelled == []
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    await until(lambda: fake.cancelled == [(fake.jobs[0].request_id, 2)])


async def test_tokens_arrive_as_they_are_made(live: str, program: httpx.AsyncClient, fake: FakeClient) -> None:
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


async def test_addresses_that_do_not_exist(web: httpx.AsyncClient) -> None:
    wrong = await web.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert wrong.json()["error"]["type"] == "invalid_request_error"
    answer = await web.get("/v1/nothing")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")
    async with browser() as other:
        assert set((await other.get("/api/nothing")).json()["error"]) == {"message", "field"}
