"""A turn in the chat page's API: written, followed, and read back from the database."""

import asyncio
import json
import time
from typing import Any

import httpx

from bench.load import http
from bench.load.http import Refused, Service
from bench.load.ledger import Ending, Request, judge

_PAUSE = 0.5  # seconds between two tries to reach the page again


async def turn(service: Service, request: Request) -> tuple[Ending, str]:
    """One question in a conversation of its own; what is stored is what counts. Raises as `http.whole` does."""
    number = (await _post(service, "/api/conversations", {}))["id"]
    message = await _write(service, request, number)
    while True:
        await _follow(service, request, number, message)
        messages = await _read(service, number)
        if not messages:
            return (Ending.LOST if request.accepted else Ending.REFUSED), "nothing is stored"
        if messages[-1]["status"] != "streaming":
            return _judged(request, messages)
        if time.monotonic() - (request.heard_last or request.began) > http.PATIENCE:
            raise TimeoutError


async def _write(service: Service, request: Request, number: int) -> int:
    """Sends the question; the answer's id. A page whose connection broke looks whether its question is there."""
    try:
        made = await _post(
            service, f"/api/conversations/{number}/messages", {"content": request.expected}
        )
        request.accept(time.monotonic())
        return int(made["assistant_message"]["id"])
    except httpx.TransportError as error:
        request.retries += 1
        messages = await _read(service, number)
        if not messages:
            raise Refused(f"not stored: {error!r}") from error
        return int(messages[-1]["id"])


async def _follow(service: Service, request: Request, number: int, message: int) -> None:
    """Reads the live answer until it ends or breaks off; it always begins with all there is."""
    request.text = ""
    try:
        async with (
            asyncio.timeout(http.PATIENCE),
            service.browser.stream(
                "GET", f"/api/conversations/{number}/messages/{message}/stream"
            ) as answer,
        ):
            async for event in http.events(answer):
                piece = json.loads(event).get("text", "")
                if piece:
                    request.text += piece
                    request.heard(time.monotonic())
    except httpx.TransportError:
        request.retries += 1
        await asyncio.sleep(_PAUSE)


async def _read(service: Service, number: int) -> list[dict[str, Any]]:
    """The stored messages, once the page can be reached again. Raises TimeoutError, http.Told."""
    async with asyncio.timeout(http.PATIENCE):
        while True:
            try:
                answer = await service.browser.get(f"/api/conversations/{number}")
                if answer.status_code == 200:
                    messages: list[dict[str, Any]] = answer.json()["messages"]
                    return messages
                if isinstance(refused := http.refusal(answer), http.Told):
                    raise refused
            except httpx.TransportError:
                pass
            await asyncio.sleep(_PAUSE)


async def _post(service: Service, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with asyncio.timeout(http.PATIENCE):
        answer = await service.browser.post(path, json=body)
    if answer.status_code != 201:
        raise http.refusal(answer)
    made: dict[str, Any] = answer.json()
    return made


def _judged(request: Request, messages: list[dict[str, Any]]) -> tuple[Ending, str]:
    """Exactly one question and one answer, both whole, whatever the page showed on the way."""
    asked, answer = messages[0], messages[-1]
    if len(messages) != 2 or asked["content"] != request.expected:
        return Ending.REPEATED, f"{len(messages)} messages are stored"
    if wrong := judge(request.expected, answer["content"], whole=answer["status"] == "done"):
        return wrong, f"stored: {answer['content'][-200:]!r}"
    if answer["status"] != "done":
        told = Ending.TOLD if request.accepted else Ending.REFUSED
        return told, f"{answer['status']}: {answer['error']}"
    if wrong := judge(request.expected, request.text, whole=False):
        return wrong, f"shown: {request.text[-200:]!r}"
    request.accept(time.monotonic())
    return Ending.ANSWERED, ""
