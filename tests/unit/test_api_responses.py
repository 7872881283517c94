"""/v1/responses: inputs, outputs, events, stored responses and dialogues of them."""

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_item import ResponseItem
from pydantic import TypeAdapter

from api.requests.parts import TextPart
from api.responses import store
from api.responses.models import StoredResponse
from api.responses.output import Numbering, Output
from broker.wire import (
    AnyFrame,
    ChatMessage,
    Delta,
    Failed,
    Finished,
    Grammar,
    Job,
    Start,
    TokenLogprob,
    Tool,
)
from tests.unit.api_site import FakeClient, browser, echo, make_user

PATH = "/v1/responses"
ASK: dict[str, Any] = {"model": "tiny", "input": "one two three"}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEMS: TypeAdapter[Any] = TypeAdapter(ResponseItem)
TOOL = {
    "type": "function",
    "name": "weather",
    "description": "Tells it.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}


def told(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream; each is one that OpenAI's library knows."""
    events = []
    for block in answer.text.split("\n\n"):
        if not block.startswith("event: "):
            continue
        name, _, data = block.partition("\ndata: ")
        event = json.loads(data)
        assert name == f"event: {event['type']}"
        EVENTS.validate_python(event)
        events.append(event)
    return events


def saying(*texts: str, reason: Any = "stop", **start: Any) -> Callable[[Job], Iterable[AnyFrame]]:
    """A script that says these texts."""

    def script(job: Job) -> list[AnyFrame]:
        frames: list[AnyFrame] = [Start(request_id=job.request_id, node="n1", **start)]
        frames += [Delta(request_id=job.request_id, text=text) for text in texts]
        return [
            *frames,
            Finished(
                request_id=job.request_id, reason=reason, prompt_tokens=7, completion_tokens=5
            ),
        ]

    return script


async def test_a_text_is_answered(program: httpx.AsyncClient, fake: FakeClient) -> None:
    answer = await program.post(
        PATH, json={**ASK, "instructions": "be brief", "metadata": {"a": "b"}}
    )
    body = answer.json()
    response = Response.model_validate(body)
    [job] = fake.jobs
    assert response.id == f"resp_{job.request_id}"
    assert answer.headers["X-Request-Id"] == job.request_id
    assert (response.status, response.output_text) == ("completed", "one two three")
    assert (response.model, response.instructions, response.metadata) == (
        "tiny",
        "be brief",
        {"a": "b"},
    )
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.total_tokens) == (3, 6)
    assert job.messages == (
        ChatMessage(role="system", content="be brief"),
        ChatMessage(role="user", content="one two three"),
    )


async def test_the_events_come_in_openais_order(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    events = told(await program.post(PATH, json={**ASK, "stream": True}))
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    last = events[-1]["response"]
    assert Response.model_validate(last).output_text == "one two three"
    stored = await program.get(f"{PATH}/{last['id']}")
    assert stored.json() == last


async def test_a_stored_response_is_told_again_from_any_event_on(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    events = told(await program.post(PATH, json={**ASK, "stream": True}))
    address = f"{PATH}/{events[-1]['response']['id']}"
    again = told(await program.get(address, params={"stream": True}))
    assert again[0] == events[0]
    assert again[-1] == events[-1]
    text = "".join(event.get("delta", "") for event in again)
    for event in events:
        after = event["sequence_number"]
        rest = told(await program.get(address, params={"stream": True, "starting_after": after}))
        had = [each for each in events if each["sequence_number"] <= after]
        assert all(each["sequence_number"] > after for each in rest)
        assert "".join(each.get("delta", "") for each in [*had, *rest]) == text


async def test_what_is_not_to_be_stored_is_not(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    answer = await program.post(PATH, json={**ASK, "store": False})
    assert (await program.get(f"{PATH}/{answer.json()['id']}")).status_code == 404
    assert answer.json()["store"] is False


async def test_a_dialogue_goes_on_from_a_stored_response(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    first = (await program.post(PATH, json={**ASK, "instructions": "not carried over"})).json()
    second = (
        await program.post(PATH, json={**ASK, "input": "four", "previous_response_id": first["id"]})
    ).json()
    assert second["previous_response_id"] == first["id"]
    await program.post(PATH, json={**ASK, "input": "five", "previous_response_id": second["id"]})
    assert fake.jobs[-1].messages == (
        ChatMessage(role="user", content="one two three"),
        ChatMessage(role="assistant", content="one two three"),
        ChatMessage(role="user", content="four"),
        ChatMessage(role="assistant", content="four"),
        ChatMessage(role="user", content="five"),
    )
    await program.delete(f"{PATH}/{first['id']}")
    answer = await program.post(PATH, json={**ASK, "previous_response_id": second["id"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (
        400,
        "previous_response_not_found",
    )
    assert "deleted or has expired" in answer.json()["error"]["message"]


async def test_responses_are_their_users_own(program: httpx.AsyncClient, fake: FakeClient) -> None:
    from asgiref.sync import sync_to_async

    from api.accounts import keys

    mine = (await program.post(PATH, json=ASK)).json()["id"]
    async with browser() as other:
        key = await sync_to_async(keys.create)(await make_user())
        other.headers["Authorization"] = f"Bearer {key}"
        for method, path in [
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/cancel"),
            ("GET", "/input_items"),
        ]:
            answer = await other.request(method, f"{PATH}/{mine}{path}")
            assert answer.status_code == 404
        continued = await other.post(PATH, json={**ASK, "previous_response_id": mine})
        assert continued.status_code == 400
        reference = [{"type": "item_reference", "id": f"msg_{mine[5:]}_0"}]
        assert (await other.post(PATH, json={**ASK, "input": reference})).status_code == 400
    assert (await program.get(f"{PATH}/{mine}")).status_code == 200


async def test_items_become_turns(program: httpx.AsyncClient, fake: FakeClient) -> None:
    items: list[dict[str, Any]] = [
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "let me see", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "noon"}],
        },
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "thanks"},
    ]
    answer = await program.post(PATH, json={**ASK, "input": items})
    turns = fake.jobs[0].messages or ()
    assert [(turn.role, turn.content) for turn in turns] == [
        ("system", "rules"),
        ("user", "hello"),
        ("assistant", "let me see"),
        ("tool", "rain"),
        ("tool", "noon"),
        ("assistant", "It rains."),
        ("user", "thanks"),
    ]
    assert turns[2].reasoning == "hm"
    assert [(call.id, call.name) for call in turns[2].tool_calls] == [
        ("c1", "weather"),
        ("c2", "time"),
    ]
    assert [(turn.tool_call_id, turn.name) for turn in turns[3:5]] == [
        ("c1", "weather"),
        ("c2", "time"),
    ]
    address = f"{PATH}/{answer.json()['id']}/input_items"
    page = (await program.get(address, params={"order": "asc", "limit": 6})).json()
    assert page["has_more"]
    rest = (await program.get(address, params={"order": "asc", "after": page["last_id"]})).json()
    listed = [*page["data"], *rest["data"]]
    assert [item["type"] for item in listed] == [item.get("type", "message") for item in items]
    for item in listed:
        if item.get("role") != "developer":
            ITEMS.validate_python(item)
    backwards = (await program.get(address)).json()["data"]
    assert backwards == listed[::-1]


async def test_items_of_stored_responses_may_be_referred_to(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    first = (await program.post(PATH, json=ASK)).json()
    sent = [
        {"type": "item_reference", "id": first["output"][0]["id"]},
        {"role": "user", "content": "more"},
    ]
    assert (await program.post(PATH, json={**ASK, "input": sent})).status_code == 200
    assert fake.jobs[-1].messages == (
        ChatMessage(role="assistant", content="one two three"),
        ChatMessage(role="user", content="more"),
    )
    unknown = [{"type": "item_reference", "id": "msg_1"}]
    answer = await program.post(PATH, json={**ASK, "input": unknown})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input[0].id")


async def test_tools_and_formats_reach_the_job(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    schema = {"type": "object", "properties": {}}
    body = {
        **ASK,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
        "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}},
        "reasoning": {"effort": "low"},
        "max_output_tokens": 5,
        "truncation": "auto",
        "service_tier": "flex",
    }
    answer = await program.post(PATH, json=body)
    response = Response.model_validate(answer.json())
    [job] = fake.jobs
    assert job.tools == (
        Tool(
            name="weather",
            description="Tells it.",
            parameters=json.dumps(TOOL["parameters"], separators=(",", ":")),
            strict=True,
        ),
    )
    assert (job.tool_choice, job.tool_name, job.parallel_tool_calls) == (
        "required",
        "weather",
        False,
    )
    source = '{"type":"object","properties":{}}'
    assert job.sampling.grammar == Grammar(kind="json_schema", source=source)
    assert (job.reasoning_effort, job.sampling.max_tokens, job.truncate) == ("low", 5, True)
    assert (job.job_class, response.service_tier) == ("batch", "flex")
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"


async def test_a_choice_in_the_shape_of_chat_completions(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = await program.post(PATH, json={**ASK, "tools": [TOOL], "tool_choice": choice})
    assert answer.status_code == 200, answer.text
    [job] = fake.jobs
    assert (job.tool_choice, job.tool_name) == ("required", "weather")


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"input": 5}, "input", ""),
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role", "must be one of"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type", "computer_call"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
            "images",
        ),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input[0].arguments", "JSON"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
        ({"tools": [{**TOOL, "name": "no name"}]}, "tools[0]", "letters"),
        ({"tool_choice": "required"}, "tool_choice", "only with tools"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}},
            "tool_choice",
            "no tool",
        ),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "file_search"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function"}},
            "tool_choice",
            "name: must be a text",
        ),
        ({"messages": []}, "messages", "use input"),
        ({"max_tokens": 5}, "max_tokens", "use max_output_tokens"),
        ({"conversation": "conv_1"}, "conversation", "use previous_response_id"),
        ({"top_logprobs": 21}, "top_logprobs", "less than or equal"),
        ({"top_logprobs": 3, "background": True}, "top_logprobs", "not kept"),
        ({"background": True, "store": False}, "store", "is stored"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "JSON schema"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "no response"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(
    program: httpx.AsyncClient, fake: FakeClient, changes: Any, field: str, reason: str
) -> None:
    answer = await program.post(PATH, json={**ASK, **changes})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].startswith(field)
    assert reason in error["message"]
    assert fake.jobs == []


async def test_a_length_that_is_used_up_is_incomplete(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = saying("cut", reason="length")
    events = told(await program.post(PATH, json={**ASK, "stream": True}))
    assert events[-1]["type"] == "response.incomplete"
    response = Response.model_validate(events[-1]["response"])
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]


async def test_an_empty_answer_is_an_empty_message(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = saying()
    response = Response.model_validate((await program.post(PATH, json=ASK)).json())
    assert (len(response.output), response.output_text) == (1, "")


async def test_a_failure_is_an_error_or_an_event(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = lambda job: [
        Failed(request_id=job.request_id, code="too_long", message="9 tokens, at most 8")
    ]
    answer = await program.post(PATH, json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    events = told(await program.post(PATH, json={**ASK, "stream": True}))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "invalid_prompt"
    assert not await StoredResponse.objects.aexists()


async def test_a_retry_with_the_same_key_is_the_same_response(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    key = {"Idempotency-Key": "a response"}
    first = await program.post(PATH, json=ASK, headers=key)
    again = await program.post(PATH, json=ASK, headers=key)
    assert first.json() == again.json()
    assert again.headers["Idempotent-Replay"] == "true"
    assert len(fake.jobs) == 1
    assert await StoredResponse.objects.acount() == 1


async def test_old_responses_and_too_many_are_deleted(
    program: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MOST_RESPONSES", 2)
    ids = [(await program.post(PATH, json=ASK)).json()["id"] for _ in range(4)]
    assert await store.delete_expired() == 2
    statuses = [(await program.get(f"{PATH}/{each}")).status_code for each in ids]
    assert statuses == [404, 404, 200, 200]
    monkeypatch.setattr(store, "RETENTION", -store.RETENTION)
    assert await store.delete_expired() == 2


CALLS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.mark.parametrize("summary", [None, "auto"])
async def test_reasoning_and_calls_are_items_of_their_own(
    program: httpx.AsyncClient, fake: FakeClient, summary: str | None
) -> None:
    text = f"<think>hm, well</think>I look.{CALLS}{CALLS}"
    fake.script = saying(
        *(text[at : at + 7] for at in range(0, len(text), 7)),
        tool_format="hermes",
        reasoning_format="think",
    )
    body = {**ASK, "tools": [TOOL], "reasoning": {"summary": summary}}
    events = told(await program.post(PATH, json={**body, "stream": True}))
    last = events[-1]["response"]
    response = Response.model_validate(last)
    assert [item.type for item in response.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    reasoning, _, first, second = last["output"]
    told_as = reasoning["summary"] if summary else reasoning["content"]
    assert told_as[0]["text"] == "hm, well"
    assert response.output_text == "I look."
    assert first["call_id"] != second["call_id"]
    assert json.loads(first["arguments"]) == {"city": "Oslo"}
    kind = "reasoning_summary_text" if summary else "reasoning_text"
    for name in (kind, "output_text", "function_call_arguments"):
        deltas = [each for each in events if each["type"] == f"response.{name}.delta"]
        done = [each for each in events if each["type"] == f"response.{name}.done"]
        whole = "".join(each.get("text") or each["arguments"] for each in done)
        assert "".join(each["delta"] for each in deltas) == whole
    assert [each["item"] for each in events if each["type"] == "response.output_item.done"] == (
        last["output"]
    )
    again = told(await program.get(f"{PATH}/{last['id']}", params={"stream": True}))
    numbers = {each["type"]: each["sequence_number"] for each in events}
    assert {each["type"]: each["sequence_number"] for each in again} == numbers
    await program.post(PATH, json={**ASK, "previous_response_id": last["id"]})
    turns = fake.jobs[-1].messages or ()
    assert [(turn.role, len(turn.tool_calls), turn.reasoning) for turn in turns] == [
        ("user", 0, ""),
        ("assistant", 2, "hm, well"),
        ("user", 0, ""),
    ]


@given(
    text=st.text(max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=8),
    after=st.integers(-1, 60),
)
def test_events_are_the_same_however_the_text_was_cut(
    text: str, cuts: list[int], after: int
) -> None:
    def numbered(pieces: list[str], after: int) -> list[dict[str, Any]]:
        output, numbering = Output("x"), Numbering(after)
        events = [event for piece in pieces for event in output.add(TextPart(piece))]
        events += output.end("completed")
        numbered = [numbering.number(event) for event in events]
        return [event for event in numbered if event is not None]

    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(borders)]
    whole, cut = numbered([text], -1), numbered(pieces, -1)
    assert [each for each in whole if "delta" not in each] == [
        each for each in cut if "delta" not in each
    ]
    seen = [each for each in cut if each["sequence_number"] <= after]
    if seen:  # a reader comes back with the last number that it saw
        rest = numbered([text], seen[-1]["sequence_number"])
        assert "".join(each.get("delta", "") for each in [*seen, *rest]) == text


async def test_the_moment_of_its_end_is_the_same_for_all_readers(
    program: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.responses.progress.time.time", itertools.count(1000).__next__)
    key = {"Idempotency-Key": "the same moment"}
    first = (await program.post(PATH, json=ASK, headers=key)).json()
    again = (await program.post(PATH, json=ASK, headers=key)).json()
    stored = (await program.get(f"{PATH}/{first['id']}")).json()
    assert first["completed_at"] == again["completed_at"] == stored["completed_at"]


async def test_a_response_is_stored_in_the_format_in_which_it_was_read(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    """A node of a former release, which tells no formats, continues the answer."""
    fake.script = lambda job: [
        Start(request_id=job.request_id, node="n1", tool_format="hermes"),
        Delta(request_id=job.request_id, text=CALLS[:30]),
        Start(request_id=job.request_id, node="n0"),
        Delta(request_id=job.request_id, text=CALLS[30:]),
        Finished(request_id=job.request_id, reason="stop", completion_tokens=9),
    ]
    response = (await program.post(PATH, json={**ASK, "tools": [TOOL]})).json()
    assert [item["type"] for item in response["output"]] == ["function_call"]
    again = (await program.get(f"{PATH}/{response['id']}")).json()
    assert again["output"] == response["output"]


@pytest.mark.parametrize("more", [{}, {"instructions": ""}, {"background": True}], ids=str)
async def test_nothing_to_answer(program: httpx.AsyncClient, more: dict[str, Any]) -> None:
    answer = await program.post(PATH, json={"model": "tiny", "input": [], **more})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "input"


async def test_the_tokens_of_an_input_are_counted_by_a_node(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    answer = await program.post(f"{PATH}/input_tokens", json=ASK)
    assert answer.json() == {"object": "response.input_tokens", "input_tokens": 3}
    assert [job.task for job in fake.jobs] == ["tokenize"]


def with_logprobs(job: Job) -> list[AnyFrame]:
    """Each word with its likelihood, behind a thought."""
    start, *deltas, end = echo(job)
    assert isinstance(start, Start)
    start = msgspec.structs.replace(start, reasoning_format="think")
    thought = Delta(request_id=job.request_id, seq=1, text="<think>Hm</think>", logprobs=(HM,))
    told: list[AnyFrame] = [start, thought]
    for number, delta in enumerate(deltas, 2):
        assert isinstance(delta, Delta)
        entry = TokenLogprob(delta.text.encode(), -0.5, ((b"x", -0.25),))
        told.append(msgspec.structs.replace(delta, seq=number, logprobs=(entry,)))
    return [*told, msgspec.structs.replace(end, seq=len(told))]


HM = TokenLogprob(b"Hm", -1.0)


@pytest.mark.parametrize(
    "asked", [{"top_logprobs": 1}, {"include": ["message.output_text.logprobs"]}]
)
async def test_logprobs_of_the_text(
    program: httpx.AsyncClient, fake: FakeClient, asked: dict[str, Any]
) -> None:
    fake.script = with_logprobs
    answer = (await program.post(PATH, json={**ASK, **asked})).json()
    assert fake.jobs[0].sampling.logprobs == asked.get("top_logprobs", 0)
    [part] = answer["output"][-1]["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"] == "one two three"
    assert part["logprobs"][0]["top_logprobs"][0]["logprob"] == -0.25
    events = told(await program.post(PATH, json={**ASK, **asked, "stream": True}))
    tokens = [
        entry["token"]
        for event in events
        if event["type"] == "response.output_text.delta"
        for entry in event["logprobs"]
    ]
    assert "".join(tokens) == "one two three"
    stored = (await program.get(f"{PATH}/{answer['id']}")).json()
    assert stored["output"][-1]["content"][0]["logprobs"] == []  # they are not kept


async def test_a_stored_response_tells_the_cached_tokens(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = lambda job: [
        msgspec.structs.replace(frame, cached_tokens=2) if isinstance(frame, Finished) else frame
        for frame in echo(job)
    ]
    answer = (await program.post(PATH, json=ASK)).json()
    stored = (await program.get(f"{PATH}/{answer['id']}")).json()
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == 2
    assert stored["usage"] == answer["usage"]
