"""The openai engine before a scripted server, over real HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as some

from broker.wire import (
    LEAST_LOGPROB,
    AnyFrame,
    ChatMessage,
    Finished,
    Interrupted,
    Job,
    ResumeGrant,
    Sampling,
    TokenLogprob,
)
from tests.unit.cluster import Cluster, until
from tests.unit.engine.upstream import (
    DONE,
    Asked,
    Reply,
    Script,
    Upstream,
    answering,
    event,
    listing,
    nobody,
    refusing,
)
from worker.engines import create
from worker.engines.base import Chunk, Engine, EngineError, EngineStopped, EngineUnavailable
from worker.engines.openai import engine as openai
from worker.engines.openai import http
from worker.engines.openai.errors import MOST_SECONDS, Refusal
from worker.engines.openai.sse import BadStream, Events
from worker.run import JobRun
from worker.rw_lock import ReadersWriterLock

KEY = "a-key-of-the-tests"


def chat(*said: str, delivered: str = "", **settings: Any) -> Job:
    messages = tuple(ChatMessage(role="user", content=text) for text in said or ("hello there",))
    return Job(
        request_id="r", model="near", reply_to="q", created=0, messages=messages,
        sampling=Sampling(**{"seed": 7, **settings}), delivered=delivered,
    )  # fmt: skip


def text_job(prompt: str, delivered: str = "", **settings: Any) -> Job:
    return Job(
        request_id="r", model="near", reply_to="q", created=0, prompt=prompt,
        sampling=Sampling(**{"seed": 7, **settings}), delivered=delivered,
    )  # fmt: skip


def engine_for(
    url: str, *, slots: int = 4, upstream_model: str = "", model: str = "near"
) -> Engine:
    return create(
        "openai", model=model, model_path=None, device="auto", slots=slots, token_delay=0,
        upstream=url, upstream_model=upstream_model,
    )  # fmt: skip


@asynccontextmanager
async def before(
    *scripts: Script, models: Script | None = None, slots: int = 4
) -> AsyncIterator[tuple[Engine, Upstream]]:
    """A started engine, and the server it stands before."""
    async with Upstream(*scripts, models=models) as upstream:
        engine = engine_for(upstream.url, slots=slots)
        await engine.start()
        try:
            yield engine, upstream
        finally:
            await engine.stop()


async def read(engine: Engine, job: Job) -> list[Chunk]:
    async with asyncio.timeout(10):
        return [chunk async for chunk in engine.run(job)]


def whole(chunks: list[Chunk]) -> tuple[str, int, str | None]:
    """Text, tokens and finish of an answer whose chunks are as the protocol says."""
    assert not chunks[0].text
    assert [chunk.finish for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    return (
        "".join(chunk.text for chunk in chunks),
        sum(chunk.tokens for chunk in chunks),
        chunks[-1].finish,
    )


async def error_of(engine: Engine, job: Job) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await read(engine, job)
    return caught.value


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CANOPY_UPSTREAM", "CANOPY_UPSTREAM_MODEL", "CANOPY_UPSTREAM_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for long."""
    monkeypatch.setattr(openai, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(openai, "FAULT_SECONDS", 0.1)
    monkeypatch.setattr(openai, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(openai, "LAST_SECONDS", 0.05)
    monkeypatch.setattr(openai, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(openai, "FIRST_SECONDS", 0.2)
    monkeypatch.setattr(openai, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(http, "FIRST_SECONDS", 0.2)


# ---- the beginning


@pytest.mark.parametrize(
    ("there", "wanted", "served"),
    [
        (["far"], "", "far"),
        (["far", "near"], "", "near"),
        (["far", "other"], "other", "other"),
        (["far", "other"], "an-alias", "an-alias"),
        ([], "blind", "blind"),
    ],
)
async def test_the_model_is_found(there: list[str], wanted: str, served: str) -> None:
    async with Upstream(answering("x"), models=listing(*there)) as upstream:
        engine = engine_for(upstream.url, upstream_model=wanted)
        await engine.start()
        await read(engine, chat())
        await engine.stop()
        assert upstream.asked[0].body["model"] == served
        assert engine.device == upstream.url.removeprefix("http://").removesuffix("/v1")


@pytest.mark.parametrize(
    ("told", "length"),
    [
        ({"max_model_len": 4096}, 4096),
        ({"context_length": 512, "max_model_len": 4096}, 512),
        ({}, 0),
        ({"max_model_len": "4096"}, 0),
        ({"max_model_len": True, "context_length": -1}, 0),
        ({"max_model_len": 10**30}, 0),
        ({"max_model_len": None}, 0),
    ],
)
async def test_the_context_is_as_the_server_tells(told: dict[str, Any], length: int) -> None:
    models = refusing(200, {"data": [{"id": "near", **told}]})
    async with Upstream(answering(), models=models) as upstream:
        engine = engine_for(upstream.url)
        assert engine.context_length == 0
        await engine.start()
        assert engine.context_length == length
        await engine.stop()


@pytest.mark.parametrize(
    ("models", "wanted", "said"),
    [
        (listing("far", "other"), "", "no model 'near'.*far, other"),
        (listing(), "", "There are: none"),
        (refusing(404, {"detail": "Not Found"}), "", "end in /v1.*--upstream-model"),
        (refusing(200, b"<html>hello</html>"), "", "--upstream-model"),
        (refusing(401, {"error": {"message": "no"}}), "m", "CANOPY_UPSTREAM_KEY"),
        (refusing(503, {"error": {"message": "Loading model"}}), "m", "503: Loading model"),
    ],
)
async def test_a_server_that_will_not_do_is_said_in_one_line(
    models: Script, wanted: str, said: str
) -> None:
    async with Upstream(answering(), models=models) as upstream:
        with pytest.raises(EngineUnavailable, match=said) as caught:
            await engine_for(upstream.url, upstream_model=wanted).start()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [404, 405, 500, 501])
async def test_without_a_list_a_named_model_will_do(status: int) -> None:
    async with Upstream(answering("x"), models=refusing(status, b"nothing here")) as upstream:
        engine = engine_for(upstream.url, upstream_model="blind")
        await engine.start()
        assert whole(await read(engine, chat()))[0] == "x"
        await engine.stop()


@pytest.mark.parametrize("address", ["", "127.0.0.1:8000/v1", "http://[nowhere/v1"])
async def test_an_address_is_needed(address: str) -> None:
    with pytest.raises(EngineUnavailable, match="--upstream"):
        await engine_for(address).start()


async def test_nobody_there() -> None:
    async with nobody() as url:
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await engine_for(url).start()


async def test_the_environment_will_do_and_the_key_is_sent_and_never_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Upstream(
        answering("x"), refusing(400, {"error": {"message": f"bad key {KEY}"}})
    ) as upstream:
        monkeypatch.setenv("CANOPY_UPSTREAM", upstream.url)
        monkeypatch.setenv("CANOPY_UPSTREAM_MODEL", "far")
        monkeypatch.setenv("CANOPY_UPSTREAM_KEY", KEY)
        engine = engine_for("")
        await engine.start()
        await read(engine, chat())
        assert upstream.asked[0].headers["authorization"] == f"Bearer {KEY}"
        error = await error_of(engine, chat())
        await engine.stop()
    assert KEY not in str(error) + "".join(capsys.readouterr())


async def test_engines_without_a_server_ignore_the_settings() -> None:
    engine = create(
        "echo",
        model="m",
        model_path=None,
        device="auto",
        slots=1,
        token_delay=0,
        upstream="http://x",
    )
    assert engine.name == "echo"


# ---- answers


async def test_a_dialogue() -> None:
    async with before(answering("Good", " day", ".", usage=(11, 3))) as (engine, upstream):
        assert not engine.warm
        chunks = await read(
            engine, chat("be brief", "hello", max_tokens=9, temperature=0.5, stop=("X",))
        )
        assert whole(chunks) == ("Good day.", 3, "stop")
        assert chunks[-1].prompt_tokens == 11
        assert engine.warm
    (asked,) = upstream.asked
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert asked.body == {
        "model": "far",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": 7,
        "stop": ["X"],
    }


async def test_a_prompt_without_a_limit_gets_the_servers_whole_context() -> None:
    async def script(asked: Asked, reply: Reply) -> None:
        await reply.begin()
        for text in ("one", " two"):
            await reply.write(event(choices=[{"index": 0, "text": text, "finish_reason": None}]))
        await reply.write(event(choices=[{"index": 0, "text": "", "finish_reason": "length"}]))
        await reply.write(DONE)
        await reply.end()

    async with before(script) as (engine, upstream):
        assert whole(await read(engine, text_job("count"))) == ("one two", 2, "length")
    assert upstream.asked[0].path == "/v1/completions"
    assert upstream.asked[0].body["prompt"] == "count"
    assert upstream.asked[0].body["max_tokens"] is None


@pytest.mark.parametrize(
    ("seed", "sent"), [(7, 7), (2**63 - 1, 2**31 - 1), (-1, 2**31 - 1), (None, "nothing")]
)
async def test_seeds_fit_into_31_bits(seed: int | None, sent: int | str) -> None:
    async with before(answering("x")) as (engine, upstream):
        await read(engine, chat(seed=seed, top_k=5))
    assert upstream.asked[0].body.get("seed", "nothing") == sent
    assert upstream.asked[0].body["top_k"] == 5


async def test_settings_are_sent_where_they_are_set() -> None:
    """The first test of an answer says what is sent otherwise."""
    names = {
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "top_k": 9,
    }
    async with before(answering("x")) as (engine, upstream):
        await read(engine, chat(**names, logit_bias={17: -100.0}))
    sent = upstream.asked[0].body
    assert {name: sent[name] for name in names} == names
    assert sent["repeat_penalty"] == 1.1
    assert sent["logit_bias"] == {"17": -100.0}


def said_likely(token: str, *top: tuple[str, float]) -> dict[str, Any]:
    others = [{"token": name, "logprob": logprob, "bytes": None} for name, logprob in top]
    return {"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": others}


async def test_logprobs_of_a_dialogue() -> None:
    async def script(asked: Asked, reply: Reply) -> None:
        await reply.begin()
        told = {"content": [said_likely("é", ("b", -2.0), ("é", -0.5), ("c", -9e9))]}
        await reply.write(event(choices=[{"delta": {"content": "é"}, "logprobs": told}]))
        await reply.write(
            event(choices=[{"delta": {"content": "x"}, "logprobs": {"content": [{"token": 5}]}}])
        )
        await reply.finish()

    async with before(script) as (engine, upstream):
        chunks = await read(engine, chat(logprobs=3))
        await read(engine, chat())
    likely = [each for chunk in chunks for each in chunk.logprobs]
    assert likely == [
        TokenLogprob(
            "é".encode(), -0.5, (("é".encode(), -0.5), (b"b", -2.0), (b"c", LEAST_LOGPROB))
        )
    ]
    assert [asked.body.get("logprobs") for asked in upstream.asked] == [True, None]
    assert upstream.asked[0].body["top_logprobs"] == 3


async def test_logprobs_of_a_text() -> None:
    told = {
        "tokens": ["a", "bytes:\\xe2\\x80"],
        "token_logprobs": [-0.1, None],
        "top_logprobs": [{"b": -3.0, "a": -0.1}, None],
    }

    async def script(asked: Asked, reply: Reply) -> None:
        await reply.begin()
        await reply.write(event(choices=[{"text": "a", "logprobs": told}]))
        await reply.finish()

    async with before(script) as (engine, upstream):
        chunks = await read(engine, text_job("count", logprobs=1))
    assert [each for chunk in chunks for each in chunk.logprobs] == [
        TokenLogprob(b"a", -0.1, ((b"a", -0.1),)),
        TokenLogprob(b"\xe2\x80", LEAST_LOGPROB),
    ]
    assert upstream.asked[0].body["logprobs"] == 1


async def test_logprobs_come_with_the_text_that_is_told() -> None:
    async def script(asked: Asked, reply: Reply) -> None:
        await reply.begin()
        for text in ("one", " two"):
            told = {"content": [said_likely(text)]}
            await reply.write(event(choices=[{"delta": {"content": text}, "logprobs": told}]))
        await reply.finish()

    async with before(script) as (engine, _):
        chunks = await read(engine, chat(logprobs=0, delivered="one"))
    assert [each.token for chunk in chunks for each in chunk.logprobs] == [b" two"]


async def test_deltas_of_several_tokens_are_counted_by_the_usage() -> None:
    async with before(answering("many words", " at once", usage=(8, 40))) as (engine, _):
        assert whole(await read(engine, chat())) == ("many words at once", 40, "stop")


async def test_half_tokens_are_counted_by_the_usage() -> None:
    async with before(answering("a", "b", "c", "d", usage=(8, 2))) as (engine, _):
        assert whole(await read(engine, chat())) == ("abcd", 2, "stop")


async def test_without_usage_the_deltas_are_counted_and_the_prompt_estimated() -> None:
    async with before(answering("a", "b", usage=None)) as (engine, _):
        chunks = await read(engine, chat("x" * 40))
        assert whole(chunks) == ("ab", 2, "stop")
        assert chunks[0].prompt_tokens == 10
        assert chunks[-1].prompt_tokens == 0


async def test_reasoning_is_counted_and_not_told() -> None:
    async def script(asked: Asked, reply: Reply) -> None:
        await reply.begin()
        await reply.write(event(choices=[{"delta": {"role": "assistant", "content": ""}}]))
        await reply.write(event(choices=[{"delta": {"reasoning_content": "hm"}}]))
        await reply.write(event(choices=[{"delta": {"reasoning": "ah"}}]))
        await reply.say("yes")
        await reply.finish(usage=None)

    async with before(script) as (engine, _):
        assert whole(await read(engine, chat())) == ("yes", 3, "stop")


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "stop"), ("tool_calls", "stop")],
)
async def test_finish_reasons(reason: str, finish: str) -> None:
    async with before(answering("x", reason=reason)) as (engine, _):
        assert whole(await read(engine, chat()))[2] == finish


async def test_events_as_servers_write_them() -> None:
    async def script(asked: Asked, reply: Reply) -> None:
        await reply.begin("text/event-stream; charset=utf-8")
        said = json.dumps(
            {"choices": [{"delta": {"content": "a\u2028b"}}]}, ensure_ascii=False
        ).encode()
        await reply.write(b": waiting\r\n\r\nevent: x\r\nid: 4\r\ndata:" + said[:30])
        await reply.write(said[30:] + b"\r")
        await reply.write(b"\n\r\n: keep-alive\r\n\r\n")
        await reply.write(
            b'data: {"choices":null,"usage":null}\n\ndata: {"choices":[{"finish_reason":"stop"}]}\n\n'
        )
        await reply.write(b"data: [DONE]")
        await reply.end()

    async with before(script) as (engine, _):
        assert whole(await read(engine, chat())) == ("a\u2028b", 1, "stop")


async def test_an_answer_with_a_reason_is_whole_though_nothing_follows(hasty: None) -> None:
    async def cut(asked: Asked, reply: Reply) -> None:
        await reply.begin()
        await reply.say("all")
        await reply.write(event(choices=[{"delta": {}, "finish_reason": "stop"}]))

    async def hang(asked: Asked, reply: Reply) -> None:
        await cut(asked, reply)
        await reply.gone.wait()

    async with before(cut, hang) as (engine, _):
        assert whole(await read(engine, chat())) == ("all", 1, "stop")
        assert whole(await read(engine, chat())) == ("all", 1, "stop")


# ---- refusals


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
                "message": "The input (9 tokens) is longer than the model's context length (8 tokens)."
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
    status: int, alone: bool, blamed: bool, hasty: None
) -> None:
    async with before(refusing(status, {"error": {"message": "no luck"}})) as (engine, _):
        error = await error_of(engine, chat())
        assert (error.retryable, error.alone, not isinstance(error, EngineStopped)) == (
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
async def test_a_busy_server_is_asked_again(status: int, hasty: None) -> None:
    busy = refusing(status, {"error": {"message": "slow down"}})
    async with before(busy, busy, answering("at last")) as (engine, upstream):
        assert whole(await read(engine, chat()))[0] == "at last"
        assert len(upstream.asked) == 3


async def test_a_server_that_stays_busy_gets_its_job_taken_back_and_nobody_is_blamed(
    hasty: None,
) -> None:
    async with before(refusing(503, {"error": "full"}, "Retry-After: 0.05")) as (engine, upstream):
        error = await error_of(engine, chat())
        assert isinstance(error, EngineStopped)
        assert error.alone
        assert 1 < len(upstream.asked) <= 3


@pytest.mark.parametrize(
    ("asked", "pause"),
    [
        ("", 1.0),
        ("3", 3.0),
        ("0", 1.0),
        ("-5", 1.0),
        ("86400", MOST_SECONDS),
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
    async def strict(asked: Asked, reply: Reply) -> None:
        if "top_k" in asked.body:
            await reply.whole(422 if "detail" in complaint else 400, complaint)
        else:
            await answering("fine")(asked, reply)

    async with before(strict) as (engine, upstream):
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                assert whole(await read(engine, chat(top_k=3)))[0] == "fine"
    assert ["top_k" in asked.body for asked in upstream.asked] == [True, False, False]
    assert [line["fields"] for line in logs if "fields" in line] == [["top_k"]]


async def test_a_limit_that_was_asked_for_is_never_left_out() -> None:
    complaint = {"error": {"message": "unsupported value of max_tokens"}}
    async with before(refusing(400, complaint)) as (engine, upstream):
        assert (await error_of(engine, chat(max_tokens=3))).code == "invalid"
        assert len(upstream.asked) == 1


# ---- connections that break


async def cut_off(asked: Asked, reply: Reply) -> None:
    await reply.begin()
    await reply.say("half an")


async def garbage(asked: Asked, reply: Reply) -> None:
    await reply.begin()
    await reply.write(b'data: {"choices": [{"delta": {"content": 5}}]}\n\n')


async def broken(asked: Asked, reply: Reply) -> None:
    await reply.begin()
    await reply.write(b"data: {half\n\n")


async def endless(asked: Asked, reply: Reply) -> None:
    await reply.begin()
    await reply.write(b"data: " + b"x" * (2 << 20))
    await reply.gone.wait()


async def silent_end(asked: Asked, reply: Reply) -> None:
    await reply.begin()
    await reply.say("half an")
    await reply.end()


async def given_up(asked: Asked, reply: Reply) -> None:
    await answering("half an", reason="abort")(asked, reply)


async def no_head(asked: Asked, reply: Reply) -> None:
    return


async def no_http(asked: Asked, reply: Reply) -> None:
    await reply._send("SMTP ready\r\n\r\n")


@pytest.mark.parametrize(
    "script", [cut_off, garbage, broken, endless, silent_end, given_up, no_head, no_http]
)
async def test_an_answer_that_breaks_off_is_lost_and_its_neighbours_are_not(script: Script) -> None:
    async with before(script) as (engine, _):
        error = await error_of(engine, chat())
        assert (error.code, error.retryable, error.alone) == ("engine", True, True)
        assert not isinstance(error, EngineStopped)


async def test_a_server_that_does_not_stream_is_found_out() -> None:
    async with before(refusing(200, {"choices": [{"message": {"content": "all at once"}}]})) as (
        engine,
        _,
    ):
        assert "no stream" in str(await error_of(engine, chat()))


async def test_a_server_that_ends_in_an_answer_fails_the_engine() -> None:
    async def last_words(asked: Asked, reply: Reply) -> None:
        await cut_off(asked, reply)
        upstream.close()

    async with before(last_words) as (engine, upstream):
        error = await error_of(engine, chat())
        assert (error.retryable, error.alone) == (True, False)
        assert not isinstance(error, EngineStopped)


async def test_a_server_that_is_gone_fails_the_engine_and_blames_nobody() -> None:
    async with before(answering("x")) as (engine, upstream):
        await upstream.__aexit__()
        error = await error_of(engine, chat())
        assert isinstance(error, EngineStopped)
        assert not error.alone


async def test_silence_before_and_in_an_answer_ends_it(hasty: None) -> None:
    async def nothing(asked: Asked, reply: Reply) -> None:
        await reply.gone.wait()

    async def head(asked: Asked, reply: Reply) -> None:
        await reply.begin()
        await reply.gone.wait()

    async def half(asked: Asked, reply: Reply) -> None:
        await reply.begin()
        await reply.say("half")
        await reply.gone.wait()

    async with before(nothing, head, half) as (engine, _):
        for _ in range(3):
            error = await error_of(engine, chat())
            assert (error.retryable, error.alone) == (True, False)


# ---- cancel and slots


class Holding:
    """A script that says `texts` and then waits for the client to leave."""

    def __init__(self, *texts: str, head: bool = True) -> None:
        self._texts = texts
        self._head = head
        self.there = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, asked: Asked, reply: Reply) -> None:
        if self._head:
            await reply.begin()
        await reply.say(*self._texts)
        self.there.set()
        await reply.gone.wait()
        self.left.set()


async def wait_for(event: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await event.wait()


@pytest.mark.parametrize("holding", [Holding(head=False), Holding(), Holding("one", " two")])
async def test_a_cancel_closes_the_connection(holding: Holding) -> None:
    async with before(holding) as (engine, _):
        reader = asyncio.create_task(read(engine, chat()))
        await wait_for(holding.there)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await wait_for(holding.left)


async def test_closing_the_run_closes_the_connection_and_frees_the_slot() -> None:
    holding = Holding("one")
    async with before(holding, answering("two"), slots=1) as (engine, upstream):
        async with aclosing(engine.run(chat())) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if chunk.text:
                    break
        await wait_for(holding.left)
        assert whole(await read(engine, chat()))[0] == "two"
        assert upstream.most == 1


async def test_never_more_requests_than_slots() -> None:
    holdings = [Holding("one"), Holding("one")]
    async with before(*holdings, slots=2) as (engine, upstream):
        readers = [asyncio.create_task(read(engine, chat())) for _ in holdings]
        for holding in holdings:
            await wait_for(holding.there)
        assert "slots" in str(await error_of(engine, chat()))
        assert upstream.most == 2
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def test_stop_ends_runs_wherever_they_are_and_start_begins_anew() -> None:
    scripts = [Holding(head=False), Holding(), Holding("one")]
    async with before(*scripts, answering("again")) as (engine, _):
        readers = [asyncio.create_task(read(engine, chat())) for _ in scripts]
        for script in scripts:
            await wait_for(script.there)
        async with asyncio.timeout(5):
            await engine.stop()
        for ended in await asyncio.gather(*readers, return_exceptions=True):
            assert isinstance(ended, EngineStopped)
        for script in scripts:
            await wait_for(script.left)
        assert isinstance(await error_of(engine, chat()), EngineStopped)
        await engine.start()
        assert whole(await read(engine, chat()))[0] == "again"


async def test_stop_reaches_a_run_that_nobody_reads(hasty: None) -> None:
    async with before(Holding("one")) as (engine, _):
        chunks = engine.run(chat())
        await anext(chunks)
        async with asyncio.timeout(5):
            await engine.stop()
        with pytest.raises(EngineStopped):
            await anext(chunks)


async def test_only_a_server_that_falls_silent_in_an_answer_is_stalled() -> None:
    waiting, answering_one = Holding(), Holding("one")
    async with before(waiting, answering_one) as (engine, _):
        assert engine.stalled() == 0.0
        first = asyncio.create_task(read(engine, chat()))
        await wait_for(waiting.there)
        assert engine.stalled() == 0.0
        chunks = engine.run(chat())
        while not (await anext(chunks)).text:
            pass
        assert engine.stalled() == 0.0, "the reader is slow, not the server"
        second = asyncio.create_task(anext(chunks))  # type: ignore[arg-type]
        async with asyncio.timeout(5):
            while engine.stalled() < 0.05:  # noqa: ASYNC110  (it is a clock that is looked at)
                await asyncio.sleep(0.01)
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


# ---- going on


DELIVERED = "one two three"


def echoing(*texts: str) -> Script:
    return answering(*texts, usage=(5, 8))


async def test_the_same_answer_is_made_again_and_told_from_where_the_reader_is() -> None:
    async with before(echoing("one", " two th", "ree four", " five")) as (engine, upstream):
        chunks = await read(engine, chat(delivered=DELIVERED))
        assert whole(chunks) == (" four five", 8, "stop")
        assert chunks[0].tokens == 4
    assert "continue_final_message" not in upstream.asked[0].body


@pytest.mark.parametrize("other", ["one too", "one", ""])
async def test_another_answer_is_not_told_and_the_delivered_text_is_continued(other: str) -> None:
    async with before(echoing(other), echoing(" four")) as (engine, upstream):
        chunks = await read(engine, chat(delivered=DELIVERED, max_tokens=20))
        assert whole(chunks) == (" four", 4 + 8, "stop")
        assert chunks[-1].prompt_tokens == 1
    _, onward = upstream.asked
    assert onward.body["messages"][-1] == {"role": "assistant", "content": DELIVERED}
    assert onward.body["continue_final_message"] is True
    assert onward.body["add_generation_prompt"] is False
    assert onward.body["max_tokens"] == 16


@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp"])
async def test_servers_that_are_known_to_go_on_are_asked_to_at_once(owner: str) -> None:
    async with before(echoing(" four"), models=listing("far", owner=owner)) as (engine, upstream):
        assert whole(await read(engine, chat(delivered=DELIVERED)))[0] == " four"
        assert len(upstream.asked) == 1


async def test_a_server_that_will_not_go_on_is_asked_anew() -> None:
    scripts = [
        refusing(400, {"error": {"message": "prefill is incompatible"}}),
        echoing(DELIVERED, " four"),
    ]
    async with before(*scripts, models=listing("far", owner="llamacpp")) as (engine, _):
        assert whole(await read(engine, chat(delivered=DELIVERED)))[0] == " four"


async def test_an_answer_that_cannot_be_continued_fails_and_is_not_tried_for_ever() -> None:
    scripts = [refusing(400, {"error": {"message": "no prefill"}}), echoing("else")]
    async with before(*scripts, models=listing("far", owner="vllm")) as (engine, _):
        error = await error_of(engine, chat(delivered=DELIVERED))
        assert (error.code, error.retryable) == ("engine", False)


@pytest.mark.parametrize(
    ("delivered", "new", "told"),
    [
        ("one ", " two", "two"),
        ("one\n\n", "\ntwo", "two"),
        ("one ", "two", "two"),
        ("one\n\n", "\n\n\n two", "\n two"),
    ],
)
async def test_white_space_at_the_seam_comes_once(delivered: str, new: str, told: str) -> None:
    async with before(echoing(*new), models=listing("far", owner="vllm")) as (engine, upstream):
        assert whole(await read(engine, chat(delivered=delivered)))[0] == told
        assert upstream.asked[0].body["messages"][-1]["content"] == "one"


async def test_a_prompt_is_continued_as_one_text() -> None:
    async with before(answering(), models=listing("far", owner="vllm")) as (engine, upstream):
        await read(engine, text_job("count: ", delivered="one two"))
        assert upstream.asked[0].body["prompt"] == "count: one two"


@given(some.text("ab ", min_size=1), some.data())
def test_the_seam_is_invisible_however_the_text_comes(text: str, data: Any) -> None:
    cut = data.draw(some.integers(1, len(text)))
    pieces, rest = [], text
    while rest:
        size = data.draw(some.integers(1, len(rest)))
        pieces.append(rest[:size])
        rest = rest[size:]
    plan = openai.upstream_body.plans(chat(delivered=text[:cut]), continues=False)[0]
    answer = openai.Answer(plan, 0, "here")
    told = "".join(answer.push(_data(piece)).text for piece in pieces)
    assert text[:cut] + told == text


def _data(text: str) -> bytes:
    return json.dumps({"choices": [{"delta": {"content": text}}]}).encode()


# ---- in a node


class Told:
    """A reader that keeps what it is told."""

    def __init__(self) -> None:
        self.frames: list[AnyFrame] = []

    def send(self, frame: AnyFrame) -> None:
        self.frames.append(frame)

    async def confirm(self, frame: AnyFrame) -> None:
        self.frames.append(frame)

    async def ask(self, number: int) -> ResumeGrant:
        raise NotImplementedError

    async def flowing(self) -> None: ...


def job_run(engine: Engine) -> JobRun:
    return JobRun(engine, chat(), "n1", "boot", 1, Told(), ReadersWriterLock(lambda: None))


async def test_a_run_counts_what_the_server_has_counted() -> None:
    async with before(answering("many words", usage=(11, 40))) as (engine, _):
        run = job_run(engine)
        ending = await run.run()
        assert isinstance(ending, Finished)
        assert (ending.prompt_tokens, ending.completion_tokens) == (11, 40)
        assert run.tokens == 40


@pytest.mark.parametrize(
    ("script", "alone"), [(cut_off, True), (refusing(404, {"error": "no such model"}), False)]
)
async def test_a_run_says_whether_the_engine_works_on(script: Script, alone: bool) -> None:
    async with before(script) as (engine, _):
        run = job_run(engine)
        ending = await run.run()
        assert isinstance(ending, Interrupted)
        assert ending.fault
        assert run.alone is alone


async def test_a_run_that_fails_alone_goes_on_elsewhere_and_its_engine_is_left_alone() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root", slots=2)
        streams = [await cluster.ask(name) for name in ("a", "b")]
        await until(lambda: cluster.where("a") == cluster.where("b") == "n1")
        await cluster.add("n2", "root")
        cluster.engine("n1").steps["a"].put_nowait(
            EngineError("engine", "lost", retryable=True, alone=True)
        )
        await until(lambda: cluster.where("a") == "n2")
        assert cluster.where("b") == "n1"
        assert cluster.engine("n1").starts == 1
        assert cluster.nodes["n1"].state().status == "idle"
        for each in streams:
            await each.aclose()


# ---- events


LINES = some.sampled_from(
    [
        b"data: a",
        b"data:b",
        b"data",
        b"data: ",
        b": c",
        b":",
        b"id: 1",
        b"event: x",
        b"",
        b"x\xe2\x80\xa8",
    ]
)


@given(some.lists(some.tuples(LINES, some.sampled_from([b"\n", b"\r\n"]))), some.data())
def test_events_are_the_same_however_the_bytes_are_cut(
    lines: list[tuple[bytes, bytes]], data: Any
) -> None:
    stream = b"".join(line + end for line, end in lines) + b"\n\n"
    expected = Events().feed(stream)
    events, found, rest = Events(), [], stream
    while rest:
        size = data.draw(some.integers(1, len(rest)))
        found += events.feed(rest[:size])
        rest = rest[size:]
    assert found == expected
    assert events.end() == []


def test_events_by_the_standard() -> None:
    events = Events()
    assert events.feed(b"data: one\ndata:  two\n\n: nothing\n\ndata\n\n") == [b"one\n two", b""]
    assert events.feed(b"data: lone\r\rdata: half") == [b"lone"]
    assert events.end() == [b"half"]


@pytest.mark.parametrize("piece", [b"x" * 11, b"data: 12345\ndata: 123456\n"])
def test_events_are_bounded(piece: bytes) -> None:
    with pytest.raises(BadStream):
        Events(limit=10).feed(piece)
