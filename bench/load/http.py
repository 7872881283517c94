"""One question asked over HTTP, and what can come back."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from bench.load.ledger import Request

PATIENCE = 120.0  # seconds without new text after which a user gives up: more than any fault lasts
_NOT_NOW = (429, 503)
_LONGEST_PAUSE = 2.0


class Refused(Exception):
    """Not accepted, and said so. `after`: seconds that the answer asks to wait."""

    def __init__(self, message: str, after: float = 0.5) -> None:
        super().__init__(message)
        self.after = min(after, _LONGEST_PAUSE)


class Told(Exception):
    """An error, for a request that should have had an answer."""


class CutShort(Exception):
    """A stream that ended in order, but without its last event."""


@dataclass(frozen=True)
class Service:
    """Where to ask. `program` sends an API key, `browser` a session."""

    model: str
    program: httpx.AsyncClient
    browser: httpx.AsyncClient

    @classmethod
    @asynccontextmanager
    async def reached(cls, url: str, model: str, key: str, login: str) -> AsyncIterator["Service"]:
        """`login`: a one-time login link. Raises httpx.HTTPError."""
        many = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx.Timeout(PATIENCE, connect=5.0)
        program = httpx.AsyncClient(
            base_url=url,
            limits=many,
            timeout=timeout,
            trust_env=False,
            headers={"Authorization": f"Bearer {key}"},
        )
        browser = httpx.AsyncClient(base_url=url, limits=many, timeout=timeout, trust_env=False)
        async with program, browser:
            await browser.get(login)
            (await browser.get("/api/me")).raise_for_status()
            browser.headers["X-CSRFToken"] = browser.cookies["csrftoken"]
            yield cls(model, program, browser)


async def streamed(
    service: Service,
    request: Request,
    headers: dict[str, str],
    enough: Callable[[str], bool] = lambda _text: False,
) -> bool:
    """A streamed answer, into the request; False if it was left early because the text was `enough`.

    Raises Refused, Told, CutShort, httpx.TransportError, TimeoutError.
    """
    request.text = ""
    async with asyncio.timeout(PATIENCE) as limit:
        asked = _chat(service, request, stream=True)
        async with service.program.stream(
            "POST", "/v1/chat/completions", json=asked, headers=headers
        ) as answer:
            if answer.status_code != 200:
                await answer.aread()
                raise refusal(answer)
            request.accept(time.monotonic(), answer.headers.get("X-Request-Id"))
            async for event in events(answer):
                if event == "[DONE]":
                    return True
                if _take(request, json.loads(event)):
                    limit.reschedule(asyncio.get_running_loop().time() + PATIENCE)
                    if enough(request.text):
                        return False
    raise CutShort("the stream ended without [DONE]")


async def whole(service: Service, request: Request, headers: dict[str, str]) -> bool:
    """An answer in one piece, into the request; always True. Raises as `streamed` does."""
    async with asyncio.timeout(PATIENCE):
        asked = _chat(service, request, stream=False)
        answer = await service.program.post("/v1/chat/completions", json=asked, headers=headers)
    if answer.status_code != 200:
        raise refusal(answer)
    request.accept(time.monotonic(), answer.headers.get("X-Request-Id"))
    made = answer.json()
    request.text, request.tokens = (
        made["choices"][0]["message"]["content"],
        made["usage"]["completion_tokens"],
    )
    return True


def refusal(answer: httpx.Response) -> Refused | Told:
    """What a status other than 2xx means. A job that was accepted and failed names its request id."""
    message = f"{answer.status_code}: {answer.text[:200]}"
    if answer.status_code in _NOT_NOW and "X-Request-Id" not in answer.headers:
        return Refused(message, float(answer.headers.get("Retry-After", 0.5)))
    return Told(message)


async def events(answer: httpx.Response) -> AsyncIterator[str]:
    """The data of each server-sent event."""
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def _chat(service: Service, request: Request, *, stream: bool) -> dict[str, Any]:
    asked = {
        "model": service.model,
        "messages": [{"role": "user", "content": request.expected}],
        "stream": stream,
    }
    return {**asked, "stream_options": {"include_usage": True}} if stream else asked


def _take(request: Request, event: dict[str, Any]) -> bool:
    """Takes one event; whether it brought text. Raises Told."""
    if "error" in event:
        raise Told(f"in the stream: {event['error']['message']}")
    if event.get("usage"):
        request.tokens = event["usage"]["completion_tokens"]
    piece = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    if piece:
        request.text += piece
        request.heard(time.monotonic())
    return bool(piece)
