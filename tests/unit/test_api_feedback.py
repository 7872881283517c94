"""Thumbs up or down for answers, with a note."""

import httpx

from tests.unit.api_site import FakeClient


async def answered(member: httpx.AsyncClient) -> tuple[str, str]:
    """The addresses of a question and its answer."""
    conversation = (await member.post("/api/conversations", json={})).json()["id"]
    messages = f"/api/conversations/{conversation}/messages"
    turn = (await member.post(messages, json={"content": "hello"})).json()
    numbers = [turn[name]["id"] for name in ("user_message", "assistant_message")]
    return f"{messages}/{numbers[0]}/feedback", f"{messages}/{numbers[1]}/feedback"


async def test_feedback_is_given_changed_and_withdrawn(
    member: httpx.AsyncClient, staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    question, answer = await answered(member)
    assert (await member.put(answer, json={"good": True})).status_code == 200
    changed = await member.put(answer, json={"good": False, "note": " It is wrong. "})
    given = changed.json()
    assert (given["good"], given["note"], given["model"]) == (False, "It is wrong.", "tiny")
    listed = await member.get("/api/feedback", params={"conversation": given["conversation"]})
    assert listed.json() == {"feedback": [given]}
    assert (await member.get("/api/feedback")).json() == {"feedback": [given]}
    assert (await staff.get("/api/feedback")).json() == {"feedback": []}
    assert (await staff.put(answer, json={"good": True})).status_code == 404
    assert (await member.put(question, json={"good": True})).status_code == 404
    assert (await member.put(answer, json={"good": True, "note": "x" * 2001})).status_code == 400
    assert (await member.delete(answer)).status_code == 204
    assert (await member.get("/api/feedback")).json() == {"feedback": []}
