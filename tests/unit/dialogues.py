"""Conversations and their events, for tests of the chat."""

import json
from typing import Any

import httpx

from api.answers.writer import AnswerWriter
from api.context import app
from broker.wire import Job


async def begin(
    client: httpx.AsyncClient, content: str = "hello world"
) -> tuple[str, dict[str, Any]]:
    """A new conversation with one message; its address and the answer."""
    made = await client.post("/api/conversations", json={})
    assert made.status_code == 201, made.text
    home = f"/api/conversations/{made.json()['id']}"
    turn = await client.post(f"{home}/messages", json={"content": content})
    assert turn.status_code == 201, turn.text
    return home, turn.json()["assistant_message"]


def writer_of(answer: dict[str, Any]) -> AnswerWriter | None:
    """The answer, if it is being written."""
    return app().writers.get(("chat.Message", answer["id"]))


def told(text: str) -> list[tuple[str, dict[str, Any]]]:
    """A stream's events."""
    parsed = []
    for block in text.split("\n\n"):
        if block.startswith("event: "):
            name, data = block.removeprefix("event: ").split("\ndata: ")
            parsed.append((name, json.loads(data)))
    return parsed


def ending_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """A stream's events, the last one without the whole message."""
    events = told(text)
    assert events[-1][1].pop("answer")["content"] is not None
    return events


async def ask(
    member: httpx.AsyncClient, home: str, content: str, **fields: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One more question, answered to its end; both messages."""
    turn = await member.post(f"{home}/messages", json={"content": content, **fields})
    assert turn.status_code == 201, turn.text
    return await finished(member, home, turn.json())


async def finished(
    member: httpx.AsyncClient, home: str, turn: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The question and its answer, once that has ended."""
    question, answer = turn["user_message"], turn["assistant_message"]
    stream = await member.get(f"{home}/messages/{answer['id']}/stream")
    return question, told(stream.text)[-1][1]["answer"]


async def conversation(member: httpx.AsyncClient) -> str:
    """A new one; its address."""
    created = await member.post("/api/conversations", json={})
    return f"/api/conversations/{created.json()['id']}"


def sent(job: Job) -> list[str]:
    """The dialogue of a job."""
    return [turn.content for turn in job.messages or ()]
