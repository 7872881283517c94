"""How answers are wanted: a user's own, a conversation's, presets; and what the job says then."""

import httpx
import pytest

from api.requests.build import CONVERSATION
from tests.unit.api_site import FakeClient

NOTHING = {"instructions": "", "temperature": None, "top_p": None, "max_tokens": None}


async def begin(member: httpx.AsyncClient) -> int:
    return (await member.post("/api/conversations", json={})).json()["id"]


async def ask(member: httpx.AsyncClient, conversation: int) -> None:
    address = f"/api/conversations/{conversation}/messages"
    answer = await member.post(address, json={"content": "hello"})
    assert answer.status_code == 201, answer.text


async def test_without_preferences_a_job_is_as_before(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    assert (await member.get("/api/preferences")).json() == NOTHING
    await ask(member, await begin(member))
    [job] = fake.jobs
    assert [message.role for message in job.messages or ()] == ["user"]
    assert job.sampling.temperature == CONVERSATION.temperature


async def test_a_conversation_refines_what_the_user_set(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    own = {**NOTHING, "instructions": "Be brief.", "temperature": 0.0, "max_tokens": 50}
    assert (await member.put("/api/preferences", json=own)).json() == own
    conversation = await begin(member)
    address = f"/api/conversations/{conversation}/preferences"
    refined = {**NOTHING, "instructions": " You are a pirate. ", "max_tokens": 9, "top_p": 0.5}
    assert (await member.put(address, json=refined)).status_code == 200
    assert (await member.get(address)).json()["instructions"] == "You are a pirate."
    await ask(member, conversation)
    [job] = fake.jobs
    messages = job.messages or ()
    assert (messages[0].role, messages[0].content) == ("system", "Be brief.\n\nYou are a pirate.")
    sampling = job.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.0, 0.5, 9)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("max_tokens", 0),
        ("max_tokens", 10**6),
        ("instructions", "x" * 8_001),
    ],
)
async def test_values_out_of_bounds_are_refused(
    member: httpx.AsyncClient, field: str, value: object
) -> None:
    answer = await member.put("/api/preferences", json={field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == field


async def test_presets(member: httpx.AsyncClient, staff: httpx.AsyncClient) -> None:
    preset = {**NOTHING, "name": "Short", "max_tokens": 20}
    added = await member.post("/api/presets", json=preset)
    assert added.status_code == 201
    assert (await member.post("/api/presets", json=preset)).status_code == 409
    [listed] = (await member.get("/api/presets")).json()["presets"]
    assert listed == added.json()
    address = f"/api/presets/{listed['id']}"
    assert (await staff.delete(address)).status_code == 404, "it is somebody else's"
    assert (await member.delete(address)).status_code == 204
    assert (await member.get("/api/presets")).json() == {"presets": []}


async def test_a_conversation_of_others_has_no_preferences(
    member: httpx.AsyncClient, staff: httpx.AsyncClient
) -> None:
    address = f"/api/conversations/{await begin(member)}/preferences"
    assert (await staff.get(address)).status_code == 404
    assert (await staff.put(address, json=NOTHING)).status_code == 404


async def test_a_preset_is_applied_to_a_conversation_or_a_new_one(
    member: httpx.AsyncClient, staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    short = {"instructions": "Be short.", "temperature": 0.2, "top_p": None, "max_tokens": 20}
    preset = (await member.post("/api/presets", json={**short, "name": "Short"})).json()
    body = {"content": "Hello", "preset": preset["id"]}
    created = (await member.post("/api/conversations", json=body)).json()
    assert created["preset"] == "Short"
    messages = fake.jobs[-1].messages or ()
    assert [turn.content for turn in messages] == ["Be short.", "Hello"]

    home = f"/api/conversations/{await begin(member)}"
    assert (await member.get(home)).json()["preset"] == ""
    applied = await member.put(f"{home}/preset", json={"preset": preset["id"]})
    assert applied.json() == {"preset": "Short"}
    assert (await member.get(f"{home}/preferences")).json() == short
    assert (await member.get(home)).json()["preset"] == "Short"
    await member.put(f"{home}/preferences", json={**short, "max_tokens": 30})
    assert (await member.get(home)).json()["preset"] == ""  # it is one of its own now
    await member.put(f"{home}/preset", json={"preset": None})
    assert (await member.get(f"{home}/preferences")).json() == NOTHING


async def test_presets_of_others_cannot_be_applied(
    member: httpx.AsyncClient, staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    theirs = (await staff.post("/api/presets", json={**NOTHING, "name": "Theirs"})).json()
    home = f"/api/conversations/{await begin(member)}"
    assert (await member.put(f"{home}/preset", json={"preset": theirs["id"]})).status_code == 404
    assert (await staff.put(f"{home}/preset", json={"preset": theirs["id"]})).status_code == 404
    before = len((await member.get("/api/conversations")).json()["conversations"])
    body = {"content": "Hello", "preset": theirs["id"]}
    assert (await member.post("/api/conversations", json=body)).status_code == 404
    assert len((await member.get("/api/conversations")).json()["conversations"]) == before
