"""Responses in the background: they go on whatever becomes of client and process."""

import asyncio
import itertools
from typing import Any

import httpx
import pytest
from openai.types.responses import Response

from api.answers import following, takeover
from api.answers import writer as writer_module
from api.context import app
from api.responses.models import StoredResponse
from broker.wire import Delta, Failed, Finished, Start
from tests.unit.api_site import FakeClient, beginning, echo, until
from tests.unit.test_api_responses import ASK, PATH, TOOL, told

BACKGROUND = {**ASK, "background": True}
_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for longer than a test needs."""
    monkeypatch.setattr(takeover, "EVERY", 0.01)
    monkeypatch.setattr(following, "POLL", 0.01)
    monkeypatch.setattr(writer_module, "SAVE_EVERY", 0.01)
    monkeypatch.setattr(writer_module, "HEARTBEAT", 0.01)


async def ended(program: httpx.AsyncClient, response_id: str) -> dict[str, Any]:
    """The response once it has ended."""
    answer = await program.get(f"{PATH}/{response_id}", params={"stream": True})
    last: dict[str, Any] = told(answer)[-1]["response"]
    return last


async def test_it_is_queued_and_read_later(program: httpx.AsyncClient, fake: FakeClient) -> None:
    answer = await program.post(PATH, json=BACKGROUND)
    first = Response.model_validate(answer.json())
    assert (first.status, first.background, first.output) == ("queued", True, [])
    last = await ended(program, first.id)
    assert Response.model_validate(last).output_text == "one two three"
    assert (await program.get(f"{PATH}/{first.id}")).json() == last
    assert last["usage"]["output_tokens"] == 3


async def test_its_events_may_be_read_at_once(program: httpx.AsyncClient, fake: FakeClient) -> None:
    events = told(await program.post(PATH, json={**BACKGROUND, "stream": True}))
    assert [event["type"] for event in events][:3] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert events[-1]["type"] == "response.completed"
    again = await program.get(f"{PATH}/{events[0]['response']['id']}", params={"stream": True})
    assert told(again)[-1] == events[-1]


async def test_it_is_stopped(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = beginning("so far")
    response_id = (await program.post(PATH, json=BACKGROUND)).json()["id"]
    cancelled = (await program.post(f"{PATH}/{response_id}/cancel")).json()
    assert Response.model_validate(cancelled).status == "cancelled"
    assert cancelled["output"][0]["status"] == "incomplete"
    assert fake.cancelled
    again = (await program.post(f"{PATH}/{response_id}/cancel")).json()
    assert again == cancelled
    events = told(await program.get(f"{PATH}/{response_id}", params={"stream": True}))
    assert events[-1]["type"] == "response.incomplete"


async def test_only_one_in_the_background_is_stopped(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    response_id = (await program.post(PATH, json=ASK)).json()["id"]
    answer = await program.post(f"{PATH}/{response_id}/cancel")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_id")


async def test_one_that_is_deleted_ends(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = beginning("so far")
    response_id = (await program.post(PATH, json=BACKGROUND)).json()["id"]
    answer = await program.delete(f"{PATH}/{response_id}")
    assert answer.json() == {"id": response_id, "object": "response", "deleted": True}
    assert fake.cancelled
    assert (await program.get(f"{PATH}/{response_id}")).status_code == 404


async def test_another_process_goes_on(program: httpx.AsyncClient, fake: FakeClient) -> None:
    """With the same text, the same events, and the tools' marks that the first one saw."""
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    fake.script = lambda job: [
        Start(request_id=job.request_id, node="n1", tool_format="hermes"),
        Delta(request_id=job.request_id, text=call[:40]),
    ]
    response_id = (await program.post(PATH, json={**BACKGROUND, "tools": [TOOL]})).json()["id"]
    while not (await StoredResponse.objects.aget()).content:  # noqa: ASYNC110 - each look awaits
        await asyncio.sleep(0.005)
    fake.script = lambda job: [
        Start(request_id=job.request_id, node="n2", tool_format="hermes"),
        Delta(request_id=job.request_id, text=call[len(job.delivered) :]),
        Finished(request_id=job.request_id, reason="stop", completion_tokens=9),
    ]
    await app().writers.hand_over()
    await StoredResponse.objects.aupdate(owner="")
    await until(lambda: len(fake.jobs) == 2)
    assert fake.jobs[1].delivered == call[:40]
    response = Response.model_validate(await ended(program, response_id))
    [item] = response.output
    assert item.type == "function_call"
    assert (item.name, item.arguments) == ("weather", '{"city": "Oslo"}')


async def test_a_dialogue_does_not_go_on_from_one_that_is_not_complete(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = beginning("so far")
    response_id = (await program.post(PATH, json=BACKGROUND)).json()["id"]
    answer = await program.post(PATH, json={**ASK, "previous_response_id": response_id})
    assert answer.status_code == 400
    assert "not complete yet" in answer.json()["error"]["message"]


async def test_one_that_failed_says_why(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: [Failed(request_id=job.request_id, code="engine", message="it broke")]
    response_id = (await program.post(PATH, json=BACKGROUND)).json()["id"]
    response = Response.model_validate(await ended(program, response_id))
    assert (response.status, response.error and response.error.message) == ("failed", "it broke")


async def test_one_that_is_refused_leaves_nothing(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    answer = await program.post(PATH, json={**BACKGROUND, "model": "nope"})
    assert answer.status_code == 404
    assert not await StoredResponse.objects.aexists()


async def test_a_retry_with_the_same_key_is_the_same_response(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    key = {"Idempotency-Key": f"background {next(_numbers)}"}
    first = await program.post(PATH, json=BACKGROUND, headers=key)
    again = await program.post(PATH, json=BACKGROUND, headers=key)
    assert first.json()["id"] == again.json()["id"]
    assert len(fake.jobs) == 1
    other = await program.post(PATH, json={**BACKGROUND, "input": "other"}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert fake.script is echo
