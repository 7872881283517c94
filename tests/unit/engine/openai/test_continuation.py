"""Answers that are continued where their reader stands."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.unit.engine.openai.runs import before, chat, error_of, read, text_job, whole
from tests.unit.engine.upstream import (
    Script,
    answering,
    listing,
    refusing,
)
from worker.engines.openai import engine as openai

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
    plan = openai.request_body.plans(chat(delivered=text[:cut]), continues=False)[0]
    answer = openai.Answer(plan, 0, "here")
    told = "".join(answer.push(_data(piece)).text for piece in pieces)
    assert text[:cut] + told == text


def _data(text: str) -> bytes:
    return json.dumps({"choices": [{"delta": {"content": text}}]}).encode()
