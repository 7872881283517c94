"""OpenAI's own Python library with tools and formats: the loop of an agent against `echo`."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from openai import OpenAI

from tests.instance import Instance

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
QUESTION = 'call get_weather {"city": "Rome"}'


@pytest.fixture
def sdk(service: Instance, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        yield client


def test_an_agent_calls_a_tool_and_answers(sdk: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    first = sdk.chat.completions.create(model="echo", messages=messages, tools=[WEATHER])
    [choice] = first.choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    second = sdk.chat.completions.create(model="echo", messages=messages, tools=[WEATHER])
    assert second.choices[0].message.content == "sunny"
    assert second.choices[0].finish_reason == "stop"


def test_a_streamed_call(sdk: OpenAI) -> None:
    """As the library itself puts it together."""
    with sdk.chat.completions.stream(
        model="echo", messages=[{"role": "user", "content": QUESTION}], tools=[WEATHER]
    ) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_completion()
    [call] = answer.choices[0].message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Rome"},
    )
    assert kinds.count("tool_calls.function.arguments.delta") > 1
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_call_that_must_come(sdk: OpenAI, choice: Any) -> None:
    answer = sdk.chat.completions.create(
        model="echo",
        messages=[{"role": "user", "content": "hello"}],
        tools=[WEATHER],
        tool_choice=choice,
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert isinstance(json.loads(call.function.arguments)["city"], str)


class City(pydantic.BaseModel):
    name: str
    size: Literal["small", "large"]


def test_an_answer_becomes_a_model(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.parse(
        model="echo", messages=[{"role": "user", "content": "Rome"}], response_format=City
    )
    assert isinstance(answer.choices[0].message.parsed, City)


def test_what_cannot_be_is_refused_by_name(sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(
            model="echo",
            messages=[{"role": "user", "content": "hello"}],
            tools=[WEATHER],
            tool_choice={"type": "function", "function": {"name": "other"}},
        )
    assert refused.value.param == "tool_choice"
