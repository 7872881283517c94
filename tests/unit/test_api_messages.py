"""/v1/messages: dialogues, tools, events and errors in Anthropic's shapes."""

import json
from typing import Any

import httpx
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from pydantic import TypeAdapter

from broker.wire import (
    AnyFrame,
    ChatMessage,
    Delta,
    Failed,
    Finished,
    Grammar,
    Job,
    Start,
    Tool,
    ToolCall,
)
from tests.unit.api_site import FakeClient

PATH = "/v1/messages"
ASK: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "one two three"}],
}
EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def told(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream; each is one that Anthropic's library knows, or a ping."""
    events = []
    for block in answer.text.split("\n\n"):
        if not block.startswith("event: "):
            continue
        name, _, data = block.partition("\ndata: ")
        event = json.loads(data)
        assert name == f"event: {event['type']}"
        if event["type"] not in ("ping", "error"):
            EVENTS.validate_python(event)
        events.append(event)
    return events


def saying(job: Job, *texts: str, reason: Any = "stop", **start: Any) -> list[AnyFrame]:
    """The frames of an answer of these texts."""
    number = job.request_id
    end = Finished(request_id=number, reason=reason, prompt_tokens=7, completion_tokens=5)
    return [
        Start(request_id=number, node="n1", **start),
        *(Delta(request_id=number, text=text) for text in texts),
        end,
    ]


async def test_a_dialogue_is_continued(program: httpx.AsyncClient, fake: FakeClient) -> None:
    answer = await program.post(PATH, json={**ASK, "system": "be brief", "stop_sequences": ["x"]})
    message = Message.model_validate(answer.json())
    [job] = fake.jobs
    assert message.id == f"msg_{job.request_id}"
    assert answer.headers["request-id"] == answer.headers["x-request-id"] == job.request_id
    assert (message.stop_reason, message.model) == ("end_turn", "tiny")
    [block] = message.content
    assert (block.type, block.text) == ("text", "one two three")  # type: ignore[union-attr]
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 3)
    assert job.messages == (
        ChatMessage(role="system", content="be brief"),
        ChatMessage(role="user", content="one two three"),
    )
    assert (job.sampling.max_tokens, job.sampling.stop) == (100, ("x",))


@pytest.mark.parametrize(
    ("texts", "shown", "found"),
    [
        (("so far ", "EN", "D"), "so far ", "END"),
        (("END",), "", "END"),
        (("so E", "NDless", "EN"), "so ENDlessEN", None),
        (("a", "b\n", "\nH:"), "ab", "\n\nH:"),
    ],
)
async def test_the_sequence_that_stopped_an_answer_is_named(
    program: httpx.AsyncClient,
    fake: FakeClient,
    texts: tuple[str, ...],
    shown: str,
    found: str | None,
) -> None:
    fake.script = lambda job: saying(job, *texts)
    body = {**ASK, "stop_sequences": ["END", "\n\nH:"]}
    whole = (await program.post(PATH, json=body)).json()
    events = told(await program.post(PATH, json={**body, "stream": True}))
    deltas = [each["delta"]["text"] for each in events if each["type"] == "content_block_delta"]
    assert "".join(deltas) == whole["content"][0]["text"] == shown
    reason = "end_turn" if found is None else "stop_sequence"
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, found)
    assert events[-2]["delta"] == {"stop_reason": reason, "stop_sequence": found}
    assert fake.jobs[0].sampling.include_stop


async def test_the_events_come_in_anthropics_order(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    answer = await program.post(PATH, json={**ASK, "stream": True})
    events = told(answer)
    assert [event["type"] for event in events] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 3
    assert answer.headers["request-id"] == fake.jobs[0].request_id


async def test_tools_are_called_and_answered(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: saying(job, "I look.\n", CALL[:30], CALL[30:], tool_format="hermes")
    body = {**ASK, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}}
    events = told(await program.post(PATH, json={**body, "stream": True}))
    starts = [each["content_block"] for each in events if each["type"] == "content_block_start"]
    assert [each["type"] for each in starts] == ["text", "tool_use"]
    arguments = "".join(
        each["delta"].get("partial_json", "")
        for each in events
        if "index" in each and "delta" in each
    )
    assert json.loads(arguments) == {"city": "Oslo"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    whole = Message.model_validate((await program.post(PATH, json=body)).json())
    use = whole.content[1]
    assert use.type == "tool_use"
    assert (use.name, use.input) == ("weather", {"city": "Oslo"})
    assert use.id.startswith("toolu_")
    [_, job] = fake.jobs
    assert job.tools[0].name == "weather"
    assert (job.tool_choice, job.tool_name) == ("required", "weather")
    turns = [
        *ASK["messages"],
        {"role": "assistant", "content": whole.model_dump(mode="json")["content"]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": use.id, "content": "rain"},
                {"type": "text", "text": "So?", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ]
    await program.post(PATH, json={**ASK, "messages": turns, "tools": [TOOL]})
    assert (fake.jobs[-1].messages or ())[1:] == (
        ChatMessage(
            role="assistant",
            content="I look.",
            tool_calls=(ToolCall(id=use.id, name="weather", arguments='{"city":"Oslo"}'),),
        ),
        ChatMessage(role="tool", content="rain", tool_call_id=use.id, name="weather"),
        ChatMessage(role="user", content="So?"),
    )


async def test_a_tool_that_failed_says_so(program: httpx.AsyncClient, fake: FakeClient) -> None:
    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "is_error": True,
        "content": [{"type": "text", "text": "no such file"}],
    }
    turns = [
        *ASK["messages"],
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "read", "input": {}}],
        },
        {"role": "user", "content": [result]},
    ]
    assert (await program.post(PATH, json={**ASK, "messages": turns})).status_code == 200
    last = (fake.jobs[0].messages or ())[-1]
    assert (last.role, last.name, last.content) == ("tool", "read", "Error: no such file")


async def test_reasoning_is_thinking(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: saying(
        job, "<think>", "hm", "</think>", "Yes.", reasoning_format="think"
    )
    body = {**ASK, "thinking": {"type": "enabled", "budget_tokens": 2000}}
    events = told(await program.post(PATH, json={**body, "stream": True}))
    deltas = [each["delta"]["type"] for each in events if each["type"] == "content_block_delta"]
    assert deltas == ["thinking_delta", "signature_delta", "text_delta"]
    message = Message.model_validate((await program.post(PATH, json=body)).json())
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert fake.jobs[0].reasoning_effort == "low"
    content = message.model_dump(mode="json")["content"]
    turns = [*ASK["messages"], {"role": "assistant", "content": content}, *ASK["messages"]]
    await program.post(PATH, json={**ASK, "messages": turns, "thinking": {"type": "disabled"}})
    assert (fake.jobs[-1].messages or ())[1] == ChatMessage(
        role="assistant", content="Yes.", reasoning="hm"
    )
    assert fake.jobs[-1].reasoning_effort == "none"


async def test_an_assistants_last_turn_is_continued(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    turns = [*ASK["messages"], {"role": "assistant", "content": "The answer is ("}]
    await program.post(PATH, json={**ASK, "messages": turns})
    await program.post(PATH, json=ASK)
    assert [job.continue_final_message for job in fake.jobs] == [True, False]


async def test_a_schema_is_a_grammar(program: httpx.AsyncClient, fake: FakeClient) -> None:
    config = {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "high"}
    await program.post(PATH, json={**ASK, "output_config": config, "tools": [TOOL]})
    [job] = fake.jobs
    source = json.dumps(SCHEMA, separators=(",", ":"))
    assert job.sampling.grammar == Grammar(kind="json_schema", source=source)
    assert job.reasoning_effort == "high"
    assert job.tools == (Tool(name="weather", description="Tells it.", parameters=source),)


async def test_the_former_name_of_the_format(program: httpx.AsyncClient, fake: FakeClient) -> None:
    wanted = {"type": "json_schema", "schema": SCHEMA}
    await program.post(PATH, json={**ASK, "output_format": wanted})
    source = json.dumps(SCHEMA, separators=(",", ":"))
    assert fake.jobs[-1].sampling.grammar == Grammar(kind="json_schema", source=source)


async def test_an_answer_cut_at_its_length(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: saying(job, "cut", reason="length")
    answer = await program.post(PATH, json=ASK)
    assert answer.json()["stop_reason"] == "max_tokens"


async def test_an_empty_answer_is_an_empty_text(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = saying
    assert (await program.post(PATH, json=ASK)).json()["content"] == [{"type": "text", "text": ""}]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "images"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "documents"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"max_tokens": None}, "max_tokens"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"tools": [{**TOOL, "name": "no name"}]}, "tools[0]"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "no tool"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"stop": "x"}, "use stop_sequences"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(
    program: httpx.AsyncClient, fake: FakeClient, changes: Any, reason: str
) -> None:
    answer = await program.post(PATH, json={**ASK, **changes})
    assert answer.status_code == 400, answer.text
    error = ErrorResponse.model_validate(answer.json())
    assert error.error.type == "invalid_request_error"
    assert reason in error.error.message
    assert error.request_id == answer.headers["request-id"]
    assert fake.jobs == []


@pytest.mark.parametrize(
    ("status", "kind", "change"),
    [
        (401, "authentication_error", {"headers": {"X-Api-Key": "no key"}}),
        (404, "not_found_error", {"json": {**ASK, "model": "nope"}}),
        (503, "overloaded_error", {}),
    ],
)
async def test_errors_have_anthropics_types(
    program: httpx.AsyncClient, fake: FakeClient, status: int, kind: str, change: Any
) -> None:
    if status == 401:
        del program.headers["Authorization"]
    if status == 503:
        fake.connected = False
    answer = await program.post(PATH, **{"json": ASK, **change})
    assert answer.status_code == status, answer.text
    assert ErrorResponse.model_validate(answer.json()).error.type == kind


async def test_a_prompt_that_is_too_long(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: [
        Failed(request_id=job.request_id, code="too_long", message="9 tokens, at most 8")
    ]
    answer = await program.post(PATH, json=ASK)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("prompt is too long: 9 tokens")
    [*_, last] = told(await program.post(PATH, json={**ASK, "stream": True}))
    assert (last["type"], last["error"]["type"]) == ("error", "invalid_request_error")


async def test_tokens_are_counted_by_a_node(program: httpx.AsyncClient, fake: FakeClient) -> None:
    body = {name: value for name, value in ASK.items() if name != "max_tokens"}
    answer = await program.post(f"{PATH}/count_tokens", json={**body, "tools": [TOOL]})
    assert answer.json() == {"input_tokens": 3}
    [job] = fake.jobs
    assert (job.task, job.tools[0].name) == ("tokenize", "weather")
