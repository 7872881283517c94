"""What is sent, and what becomes of a server's events."""

import json
from typing import Any

import pytest

from broker.wire import (
    LEAST_LOGPROB,
    TokenLogprob,
)
from tests.unit.engine.openai.runs import before, chat, read, text_job, whole
from tests.unit.engine.upstream import (
    DONE,
    Asked,
    Reply,
    answering,
    event,
)
from worker.engines.openai import engine as openai


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
    async def script(request: Asked, reply: Reply) -> None:
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
    assert [request.body.get("logprobs") for request in upstream.asked] == [True, None]
    assert upstream.asked[0].body["top_logprobs"] == 3


async def test_logprobs_of_a_text() -> None:
    logprobs = {
        "tokens": ["a", "bytes:\\xe2\\x80"],
        "token_logprobs": [-0.1, None],
        "top_logprobs": [{"b": -3.0, "a": -0.1}, None],
    }

    async def script(asked: Asked, reply: Reply) -> None:
        await reply.begin()
        await reply.write(event(choices=[{"text": "a", "logprobs": logprobs}]))
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
            b'data: {"choices":null,"usage":null}\n\n'
            b'data: {"choices":[{"finish_reason":"stop"}]}\n\n'
        )
        await reply.write(b"data: [DONE]")
        await reply.end()

    async with before(script) as (engine, _):
        assert whole(await read(engine, chat())) == ("a\u2028b", 1, "stop")


async def test_an_answer_with_a_reason_is_whole_though_nothing_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai, "LAST_SECONDS", 0.05)

    async def cut(request: Asked, reply: Reply) -> None:
        await reply.begin()
        await reply.say("all")
        await reply.write(event(choices=[{"delta": {}, "finish_reason": "stop"}]))

    async def hang(request: Asked, reply: Reply) -> None:
        await cut(request, reply)
        await reply.gone.wait()

    async with before(cut, hang) as (engine, _):
        assert whole(await read(engine, chat())) == ("all", 1, "stop")
        assert whole(await read(engine, chat())) == ("all", 1, "stop")
