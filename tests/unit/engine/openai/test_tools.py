"""Tools before another server: what it is told of them, and its calls as our readers see them."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.requests.parts import parser_for
from api.requests.reading import Collected
from broker.wire import ChatMessage, Job, Start, Tool, ToolCall
from tests.unit.engine.openai.runs import before, chat, read, whole
from tests.unit.engine.upstream import Asked, Reply, Script, event
from worker.engines.base import InvalidRequest
from worker.engines.openai.body import Plan, body, plans
from worker.engines.openai.tools import CallDelta, CallText

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = Tool(name="weather", description="Tells it.", parameters=json.dumps(SCHEMA), strict=True)
AS_TOLD = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells it.",
        "parameters": SCHEMA,
        "strict": True,
    },
}


def asking(**fields: Any) -> Job:
    return msgspec.structs.replace(chat("Weather?"), **{"tools": (WEATHER,), **fields})


def delta(index: int, name: str = "", arguments: str = "", **more: Any) -> dict[str, Any]:
    return {"index": index, "function": {"name": name or None, "arguments": arguments}, **more}


def calling(*parts: list[dict[str, Any]], text: str = "") -> Script:
    """A script: a text, then these parts of calls, an event each."""

    async def script(asked: Asked, reply: Reply) -> None:
        await reply.begin()
        if text:
            await reply.say(text)
        for calls in parts:
            choice = {"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}
            await reply.write(event(choices=[choice]))
        await reply.finish("tool_calls", (5, 3))

    return script


def as_read(job: Job, tool_format: str, text: str) -> Collected:
    parser = parser_for(job, Start(request_id="r", node="n", tool_format=tool_format))
    found = Collected()
    found.add([*parser.feed(text), *parser.end()])
    return found


ANSWERS = {
    "in parts": (
        calling(
            [delta(0, "weather", id="a")],
            [delta(0, arguments='{"ci')], [delta(0, arguments='ty": "R"}')],
            [delta(1, "weather", "{}", id="b")],
            text="I look.",
        ),
        [{"city": "R"}, {}],
    ),
    "whole, with one index": (
        calling([delta(0, "weather", '{"city": "R"}', id="a"), delta(0, "weather", "{}", id="b")]),
        [{"city": "R"}, {}],
    ),
    "without arguments": (calling([delta(0, "weather")]), [{}]),
    "the name again and again": (
        calling([delta(0, "weather", '{"city": ', id="a")], [delta(0, "weather", '"R"}', id="a")]),
        [{"city": "R"}],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("script", "arguments"), ANSWERS.values(), ids=ANSWERS)
async def test_its_calls_reach_the_reader(script: Script, arguments: list[Any]) -> None:
    async with before(script) as (engine, upstream):
        job = asking()
        text, _, finish = whole(await read(engine, job))
        found = as_read(job, engine.markup(job).tool_format, text)
        assert [json.loads(call.arguments) for call in found.calls] == arguments
        assert {call.name for call in found.calls} == {"weather"}
        assert finish == "stop"
        assert upstream.asked[0].body["tools"] == [AS_TOLD]


async def test_a_server_that_does_not_call_says_something() -> None:
    async with before(calling(text="Sunny.")) as (engine, _):
        job = asking()
        text, _, _ = whole(await read(engine, job))
        assert as_read(job, "hermes", text).text == "Sunny."
        assert engine.markup(chat("Weather?")).tool_format == ""


CHOICES = [
    ({}, {"tool_choice": "auto"}),
    ({"tool_choice": "required"}, {"tool_choice": "required"}),
    ({"tool_choice": "none"}, {"tool_choice": "none"}),
    (
        {"tool_choice": "required", "tool_name": "weather"},
        {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
    ),
    ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
]


@pytest.mark.parametrize(("fields", "told"), CHOICES)
def test_what_it_is_told(fields: dict[str, Any], told: dict[str, Any]) -> None:
    _, sent = body(asking(**fields), "far", Plan())
    assert sent | told == sent
    assert ("parallel_tool_calls" in sent) == ("parallel_tool_calls" in told)


def test_turns_with_calls_and_results() -> None:
    call = ToolCall(id="c1", name="weather", arguments="{}")
    turns = (
        ChatMessage(role="user", content="Weather?"),
        ChatMessage(role="assistant", content="", tool_calls=(call,)),
        ChatMessage(role="tool", content="rain", tool_call_id="c1"),
    )
    _, sent = body(asking(messages=turns, tools=()), "far", Plan())
    function = {"name": "weather", "arguments": "{}"}
    calls = [{"id": "c1", "type": "function", "function": function}]
    assert sent["messages"][1:] == [
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]
    assert "tools" not in sent


def test_an_answer_with_a_call_is_made_again() -> None:
    began = asking(delivered='So. <tool_call>\n{"name"')
    assert [plan.exact for plan in plans(began, continues=True)] == [True]
    assert len(plans(asking(delivered="So."), continues=True)) == 2


def test_a_schema_that_is_none() -> None:
    with pytest.raises(InvalidRequest, match="schema of f"):
        body(asking(tools=(Tool(name="f", parameters="{"),)), "far", Plan())


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, 0, 1]),
            st.sampled_from([None, "a", "b"]),
            st.sampled_from([None, "", "weather"]),
            st.sampled_from([None, "", "{}", '{"a": ', '"x"}']),
        )
    )
)
def test_whatever_comes_is_text(parts: list[Any]) -> None:
    writer, text = CallText(), ""
    for index, identifier, name, arguments in parts:
        function = {"name": name, "arguments": arguments}
        told = {"index": index, "id": identifier, "function": function}
        text += writer.push([msgspec.convert(told, CallDelta)])
    text += writer.close()
    assert text.count("<tool_call>") == text.count("</tool_call>")
