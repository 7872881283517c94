"""What another server is told of the dialogue's template, and of the beginning of an answer."""

import msgspec
import pytest

from broker.wire import ChatMessage, Job
from tests.unit.engine.openai.runs import before, chat, read, text_job, whole
from tests.unit.engine.upstream import answering
from worker.engines.base import InvalidRequest
from worker.engines.openai.body import Plan, body


def prefilled(**settings: int) -> Job:
    job = chat("Hi", **settings)
    turns = (*(job.messages or ()), ChatMessage(role="assistant", content="Well,"))
    return msgspec.structs.replace(job, messages=turns, continue_final_message=True)


def test_what_a_template_is_told_is_passed_on() -> None:
    job = msgspec.structs.replace(
        chat("Hi"),
        add_generation_prompt=False,
        reasoning_effort="low",
        template_arguments='{"enable_thinking": false}',
    )
    _, sent = body(job, "far", Plan())
    assert sent["add_generation_prompt"] is False
    assert sent["reasoning_effort"] == "low"
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_given_beginning_is_continued_with_what_was_delivered() -> None:
    _, sent = body(prefilled(min_tokens=5), "far", Plan(prefill=" then", spent=2), owner="vllm")
    assert sent["messages"][1:] == [{"role": "assistant", "content": "Well, then"}]
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)
    assert sent["min_tokens"] == 3


def test_a_server_that_may_not_continue_it_is_not_asked() -> None:
    with pytest.raises(InvalidRequest, match="continue_final_message"):
        body(prefilled(), "far", Plan(), owner="someone")


async def test_no_token_is_asked_for_where_none_is_wanted() -> None:
    async with before(answering("one")) as (engine, upstream):
        assert whole(await read(engine, text_job("Hi", max_tokens=0))) == ("", 0, "length")
    assert not upstream.asked
