"""One question asked over HTTP, and what can come back."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from bench.chaos.ledger import Request
from bench.errors import BenchError
from bench.harness import Instance

PATIENCE = 120.0  # seconds without new text after which a user gives up: longer than any fault
_NOT_NOW = (429, 503)
_LONGEST_PAUSE = 2.0


class Refused(BenchError):
    """Not accepted, and said so. `retry_after`: seconds."""

    def __init__(self, message: str, retry_after: float = 0.5) -> None:
        super().__init__(message)
        self.retry_after = min(retry_after, _LONGEST_PAUSE)


class ErrorAnswer(BenchError):
    """An error, for a request that should have had an answer."""


class CutShort(BenchError):
    """A stream that ended in order, but without its last event."""


@dataclass(frozen=True)
class Service:
    """The chat completions of one instance."""

    model: str
    http: httpx.AsyncClient

    @classmethod
    @asynccontextmanager
    async def of(cls, canopy: Instance) -> AsyncIterator["Service"]:
        """With connections for any number of users."""
        async with httpx.AsyncClient(
            base_url=canopy.url,
            headers={"Authorization": f"Bearer {canopy.key}"},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            timeout=httpx.Timeout(PATIENCE, connect=5.0),
            trust_env=False,
        ) as http:
            yield cls(canopy.model, http)

    async def stream(
        self, request: Request, headers: dict[str, str], leave_after: int | None = None
    ) -> bool:
        """A streamed answer, into `request`; False if it was left after so many characters.

        Raises Refused, ErrorAnswer, CutShort, httpx.TransportError, TimeoutError.
        """
        request.text = ""
        body = {**self._body(request), "stream": True, "stream_options": {"include_usage": True}}
        async with (
            asyncio.timeout(PATIENCE) as limit,
            self.http.stream(
                "POST", "/v1/chat/completions", json=body, headers=headers
            ) as response,
        ):
            if response.status_code != 200:
                await response.aread()
                raise refusal(response)
            request.accept(time.monotonic(), response.headers.get("X-Request-Id"))
            async for event in events(response):
                if event == "[DONE]":
                    return True
                if _read_event(request, json.loads(event)):
                    limit.reschedule(asyncio.get_running_loop().time() + PATIENCE)
                    if leave_after is not None and len(request.text) >= leave_after:
                        return False
        raise CutShort("the stream ended without [DONE]")

    async def complete(self, request: Request, headers: dict[str, str]) -> bool:
        """An answer in one piece, into `request`; always True. Raises as `stream` does."""
        async with asyncio.timeout(PATIENCE):
            response = await self.http.post(
                "/v1/chat/completions", json=self._body(request), headers=headers
            )
        if response.status_code != 200:
            raise refusal(response)
        request.accept(time.monotonic(), response.headers.get("X-Request-Id"))
        answer = response.json()
        request.text = answer["choices"][0]["message"]["content"]
        request.tokens = answer["usage"]["completion_tokens"]
        return True

    def _body(self, request: Request) -> dict[str, Any]:
        messages = [{"role": "user", "content": request.expected}]
        return {"model": self.model, "messages": messages}


def refusal(response: httpx.Response) -> Refused | ErrorAnswer:
    """What a status other than 2xx means. A job that was accepted and failed names its id."""
    message = f"{response.status_code}: {response.text[:200]}"
    if response.status_code in _NOT_NOW and "X-Request-Id" not in response.headers:
        return Refused(message, float(response.headers.get("Retry-After", 0.5)))
    return ErrorAnswer(message)


async def events(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def _read_event(request: Request, event: dict[str, Any]) -> bool:
    """Whether the event brought text. Raises ErrorAnswer."""
    if "error" in event:
        raise ErrorAnswer(f"in the stream: {event['error']['message']}")
    if event.get("usage"):
        request.tokens = event["usage"]["completion_tokens"]
    text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    if text:
        request.receive(time.monotonic(), text)
    return bool(text)
