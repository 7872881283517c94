"""/v1/chat/completions with tools, with a format, and with reasoning."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from broker.wire import AnyFrame, Delta, Finished, Grammar, Job, Start, Tool, ToolCall
from tests.unit.api_site import FakeClient
from tests.unit.openai_site import CHAT, events, payloads

PATH = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
WITH_TOOLS = {**CHAT, "tools": [WEATHER]}


def says(*pieces: str, reasoning: str = "think") -> Callable[[Job], list[AnyFrame]]:
    """A node whose model writes this."""

    def script(job: Job) -> list[AnyFrame]:
        frames: list[AnyFrame] = [
            Start(
                request_id=job.request_id,
                node="n1",
                tool_format="hermes",
                reasoning_format=reasoning,
            )
        ]
        for number, piece in enumerate(pieces, 1):
            frames.append(Delta(request_id=job.request_id, seq=number, text=piece))
        end = Finished(
            request_id=job.request_id,
            seq=len(frames),
            reason="stop",
            prompt_tokens=3,
            completion_tokens=len(pieces),
        )
        return [*frames, end]

    return script


def dies_first(job: Job) -> list[AnyFrame]:
    """The node that begins is of a former release, and dies before it says anything."""
    frames = says("<think>Hm</think>", CALL)(job)
    return [Start(request_id=job.request_id, node="n0"), *frames]


def deltas(text: str) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in payloads(text) if chunk["choices"]]


def allowed(mode: str, *names: str) -> dict[str, Any]:
    """The choice of some of the tools."""
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


# ---- what nodes get


async def test_tools_reach_the_node(program: httpx.AsyncClient, fake: FakeClient) -> None:
    body = {**WITH_TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    assert (await program.post(PATH, json=body)).status_code == 200
    [job] = fake.jobs
    [tool] = job.tools
    assert tool == Tool(name="get_weather", description="The weather.", parameters=tool.parameters)
    assert json.loads(tool.parameters) == SCHEMA
    assert (job.tool_choice, job.tool_name, job.parallel_tool_calls) == ("required", "", False)


@pytest.mark.parametrize(
    ("fields", "choice", "name"),
    [
        ({}, "auto", ""),
        ({"tool_choice": "auto"}, "auto", ""),
        ({"tool_choice": "none"}, "none", ""),
        ({"tool_choice": "any"}, "required", ""),
        (
            {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
            "required",
            "get_weather",
        ),
        ({"tool_choice": {"type": "function", "name": "get_weather"}}, "required", "get_weather"),
        ({"tool_choice": allowed("auto", "get_weather")}, "auto", ""),
        ({"tool_choice": allowed("required", "get_weather")}, "required", ""),
    ],
)
async def test_the_choice_of_tools(
    program: httpx.AsyncClient, fake: FakeClient, fields: dict[str, Any], choice: str, name: str
) -> None:
    answer = await program.post(PATH, json={**WITH_TOOLS, **fields})
    assert answer.status_code == 200, answer.text
    [job] = fake.jobs
    assert (job.tool_choice, job.tool_name, job.parallel_tool_calls) == (choice, name, True)


async def test_a_choice_of_some_tools_leaves_out_the_others(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    body = {**CHAT, "tools": [WEATHER, other], "tool_choice": allowed("required", "other")}
    assert (await program.post(PATH, json=body)).status_code == 200
    assert [tool.name for tool in fake.jobs[0].tools] == ["other"]
    body["tool_choice"] = allowed("auto", "third")
    answer = await program.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tool_choice")


async def test_turns_with_calls_and_results(program: httpx.AsyncClient, fake: FakeClient) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        *CHAT["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "assistant", "function_call": {"name": "g", "arguments": "{}"}},
        {"role": "function", "name": "g", "content": [{"type": "text", "text": "43"}]},
    ]
    answer = await program.post(PATH, json={**CHAT, "messages": messages})
    assert answer.status_code == 200, answer.text
    [job] = fake.jobs
    assert job.messages is not None
    _, first, result, second, older = job.messages
    assert first.tool_calls == (ToolCall(id="c1", name="f", arguments='{"a": 1}'),)
    assert (first.content, first.reasoning) == ("", "Hm.")
    assert (result.role, result.tool_call_id, result.content) == ("tool", "c1", "42")
    assert second.tool_calls == (ToolCall(id="call_g", name="g", arguments="{}"),)
    assert (older.role, older.tool_call_id, older.name) == ("tool", "call_g", "g")


@pytest.mark.parametrize(
    ("fields", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "json_schema",
            SCHEMA,
        ),
        ({"guided_json": SCHEMA}, "json_schema", SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", SCHEMA),
        ({"guided_choice": ["a", "b"]}, "choice", ["a", "b"]),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_grammar": "start: /a/"}, "lark", "start: /a/"),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"json_object": True}}, "json_object", ""),
        ({"structured_outputs": {"choice": ["a"]}, "guided_json": None}, "choice", ["a"]),
    ],
)
@pytest.mark.parametrize(
    ("path", "body"), [(PATH, CHAT), ("/v1/completions", {"model": "tiny", "prompt": "one"})]
)
async def test_formats_reach_the_node(
    program: httpx.AsyncClient,
    fake: FakeClient,
    path: str,
    body: dict[str, Any],
    fields: dict[str, Any],
    kind: str,
    source: Any,
) -> None:
    answer = await program.post(path, json={**body, **fields})
    assert answer.status_code == 200, answer.text
    grammar = fake.jobs[0].sampling.grammar
    assert grammar is not None
    assert grammar.kind == kind
    if not isinstance(source, str):
        assert json.loads(grammar.source) == source
    else:
        assert grammar == Grammar(kind=grammar.kind, source=source)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": str(n)}} for n in range(257)]},
            "tools",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "perhaps"}, "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
        ),
        ({"tools": [WEATHER], "functions": [{"name": "g"}]}, "functions"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "poem"}}, "response_format.type"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_choice": [""]}, "guided_choice"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"structured_outputs": {"regex": "a", "grammar": "b"}}, "structured_outputs.grammar"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ],
)
async def test_what_is_invalid_is_refused_by_name(
    program: httpx.AsyncClient, fake: FakeClient, fields: dict[str, Any], param: str
) -> None:
    answer = await program.post(PATH, json={**CHAT, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert answer.json()["error"]["message"].startswith(f"{param}: ")
    assert fake.jobs == []


async def test_the_effort_reaches_the_node(program: httpx.AsyncClient, fake: FakeClient) -> None:
    await program.post(PATH, json={**CHAT, "reasoning_effort": "low"})
    assert fake.jobs[0].reasoning_effort == "low"


# ---- what clients get


async def test_a_call_in_one_piece(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = says("<think>Rome?</think>", CALL[:20], CALL[20:])
    answer = await program.post(PATH, json=WITH_TOOLS)
    [choice] = answer.json()["choices"]
    message = choice["message"]
    [call] = message["tool_calls"]
    assert (choice["finish_reason"], message["content"]) == ("tool_calls", None)
    assert (message["reasoning_content"], message["reasoning"]) == ("Rome?", "Rome?")
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    assert (call["type"], call["id"][:5]) == ("function", "call_")
    assert answer.json()["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


async def test_a_streamed_call(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = says("<think>Ro", "me?</think>", "Let me see. ", *CALL)
    answer = await program.post(PATH, json={**WITH_TOOLS, "stream": True})
    parts = deltas(answer.text)
    assert "".join(part.get("reasoning_content", "") for part in parts) == "Rome?"
    assert "".join(part.get("content", "") for part in parts) == "Let me see."
    calls = [part["tool_calls"][0] for part in parts if "tool_calls" in part]
    assert calls[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert (calls[0]["index"], calls[0]["type"], calls[0]["id"][:5]) == (0, "function", "call_")
    assert "".join(call["function"]["arguments"] for call in calls) == '{"city": "Rome"}'
    assert payloads(answer.text)[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert events(answer.text)[-1] == "data: [DONE]"


async def test_choices_have_calls_of_their_own(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = says(CALL, CALL)
    answer = await program.post(PATH, json={**WITH_TOOLS, "n": 2})
    ids = [
        call["id"]
        for choice in answer.json()["choices"]
        for call in choice["message"]["tool_calls"]
    ]
    assert len(set(ids)) == 4


async def test_functions_are_called_in_the_older_way(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = says(CALL)
    body = {**CHAT, "functions": [WEATHER["function"]], "function_call": {"name": "get_weather"}}
    [choice] = (await program.post(PATH, json=body)).json()["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {
        "name": "get_weather",
        "arguments": '{"city": "Rome"}',
    }
    parts = deltas((await program.post(PATH, json={**body, "stream": True})).text)
    calls = [part["function_call"] for part in parts if "function_call" in part]
    assert calls[0] == {"name": "get_weather", "arguments": ""}
    assert "".join(call["arguments"] for call in calls) == '{"city": "Rome"}'


async def test_a_replay_has_the_same_calls(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = says("<think>Rome?</think>", *CALL)
    headers = {"Idempotency-Key": "a call"}
    first = await program.post(PATH, json=WITH_TOOLS, headers=headers)
    second = await program.post(PATH, json=WITH_TOOLS, headers=headers)
    assert second.headers["Idempotent-Replay"] == "true"
    message = first.json()["choices"][0]["message"]
    assert second.json()["choices"][0]["message"] == message
    assert message["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'
    streamed = await program.post(PATH, json={**WITH_TOOLS, "stream": True}, headers=headers)
    [begins, *_] = [part["tool_calls"] for part in deltas(streamed.text) if "tool_calls" in part]
    assert begins[0]["id"] == message["tool_calls"][0]["id"]


async def test_marks_are_text_where_no_tools_were_given(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = says(CALL)
    [choice] = (await program.post(PATH, json=CHAT)).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")


async def test_the_original_endpoint_gives_the_text_alone(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = says("<think>", "Hm.", "</think>\n\n", "Yes.")
    answer = await program.post("/arranca/", json={"text": "Is it?", "timestamp": 1})
    assert answer.json()["text"] == "Yes."


async def test_an_answer_is_read_as_the_run_that_begins_its_text_marks_it(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = dies_first
    [choice] = (await program.post(PATH, json=WITH_TOOLS)).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"] == "Hm"


@pytest.mark.parametrize(
    ("more", "field", "message"),
    [
        ({"tool_choice": {"type": "any"}}, "tool_choice.type", "should be 'function'"),
        ({"tool_choice": 5}, "tool_choice", "must be a text or an object"),
        (
            {"tool_choice": {"type": "function", "function": {}}},
            "tool_choice.function.name",
            "required",
        ),
        (
            {"tool_choice": {"type": "allowed_tools"}},
            "tool_choice.allowed_tools",
            "required",
        ),
        ({"tools": [WEATHER, WEATHER]}, "tools", "a name of its own"),
        ({"tools": [WEATHER, WEATHER], "tool_choice": "required"}, "tools", "a name of its own"),
    ],
)
async def test_a_refusal_names_the_field_alone(
    more: dict[str, Any], field: str, message: str, program: httpx.AsyncClient
) -> None:
    """Not what pydantic calls the alternatives of a field."""
    answer = await program.post(PATH, json={**CHAT, "tools": [WEATHER], **more})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, field)
    assert message in error["message"]


@pytest.mark.parametrize("kind", ["array", ["string", "null"]])
async def test_arguments_are_an_object(kind: Any, program: httpx.AsyncClient) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": kind}}}
    answer = await program.post(PATH, json={**CHAT, "tools": [tool]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools[0].function")
    assert "must be of type object" in answer.json()["error"]["message"]
