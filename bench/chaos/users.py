"""The users: each asks one question after the other over HTTP, and records what came of it."""

import asyncio
import json
import random
import time
import uuid
from dataclasses import dataclass
from typing import Any

import httpx

from bench.chaos.ledger import Ending, Ledger, Request, numbered_words

# plain: not streamed; cancel: leaves in the middle; keyed: sends an Idempotency-Key and tries again
# with it until there is an answer
KINDS = ("stream", "stream", "keyed", "stream", "cancel", "plain", "keyed plain")
PATIENCE = 120.0  # seconds without new text after which a user gives up: longer than any fault
_WORDS = (10, 120)  # of a question, which is its answer
PAUSE = 0.3  # seconds between two tries or questions, at least; at most the double
# The kernel tries to connect again after 1, 3, 7 and 15 s, where a listener's queue was full.
_TIMEOUT = httpx.Timeout(PATIENCE, connect=20.0)
_LONGEST_PAUSE = 2.0
_NOT_NOW = (429, 503)


@dataclass(frozen=True)
class User:
    """One of them; `rng` decides questions and pauses."""

    number: int
    http: httpx.AsyncClient
    model: str
    ledger: Ledger
    rng: random.Random

    @property
    def kind(self) -> str:
        return KINDS[self.number % len(KINDS)]

    async def ask_until(self, stop: asyncio.Event) -> None:
        """Asks until `stop` is set; the last question is still seen to its end."""
        count = 0
        while not stop.is_set():
            text = numbered_words(f"u{self.number}q{count}", self.rng.randint(*_WORDS))
            await self.ask(self.ledger.open(self.kind, text, time.monotonic()))
            count += 1

    async def ask(self, request: Request) -> None:
        """Until the request has ended: with a key again and again, else once."""
        headers = {}
        if "keyed" in self.kind:
            headers["Idempotency-Key"] = uuid.UUID(int=self.rng.getrandbits(128)).hex
        while request.ending is None:
            pause = PAUSE
            try:
                async with asyncio.timeout(PATIENCE) as limit:
                    pause = await self._try(request, headers, limit)
            except httpx.ConnectTimeout as error:  # nothing was sent: the service had no time
                self._fail(request, Ending.REFUSED, repr(error))
            except httpx.TransportError as error:
                ending = self.ledger.judge_broken(request, time.monotonic())
                self._fail(request, ending, repr(error))
            except TimeoutError:
                request.end(time.monotonic(), Ending.LOST, f"nothing new for {PATIENCE:.0f} s")
            if not request.is_right(complete=request.ending is Ending.ANSWERED):
                # whatever else happened
                request.end(time.monotonic(), Ending.WRONG, f"wrong text: {request.text!r}")
            await asyncio.sleep(pause * self.rng.uniform(1, 2))

    def _fail(self, request: Request, ending: Ending, note: str) -> None:
        """A try failed. That ends the request, unless its key can be tried again."""
        now = time.monotonic()
        if "keyed" not in self.kind:
            request.end(now, ending, note)
        elif now - (request.last_text or request.began) > PATIENCE:
            request.end(now, Ending.LOST, f"tried again and again: {note}")

    async def _try(
        self, request: Request, headers: dict[str, str], limit: asyncio.Timeout
    ) -> float:
        """Returns the pause until the next one. Raises httpx.TransportError, TimeoutError."""
        request.text = ""
        messages = [{"role": "user", "content": request.expected}]
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if "plain" not in self.kind:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        async with self.http.stream(
            "POST", "/v1/chat/completions", json=body, headers=headers, timeout=_TIMEOUT
        ) as response:
            if response.status_code != 200:
                await response.aread()
                return self._refused(request, response)
            request.accepted = request.accepted or time.monotonic()
            request.request_id = response.headers.get("X-Request-Id", "")
            if "plain" in self.kind:
                answer = json.loads(await response.aread())
                request.text = answer["choices"][0]["message"]["content"]
                _finish(request, answer["usage"])
            else:
                await self._read(request, response, limit)
        return PAUSE

    def _refused(self, request: Request, response: httpx.Response) -> float:
        """A status other than 200. A job that was accepted and failed names its id."""
        note = f"{response.status_code}: {response.text[:200]}"
        if response.status_code in _NOT_NOW and "X-Request-Id" not in response.headers:
            self._fail(request, Ending.REFUSED, note)
            return min(float(response.headers.get("Retry-After", PAUSE)), _LONGEST_PAUSE)
        request.end(time.monotonic(), Ending.ERROR, note)
        return PAUSE

    async def _read(self, request: Request, response: httpx.Response, limit: Any) -> None:
        """The events of a stream."""
        leave_after = len(request.expected) + 1
        if self.kind == "cancel":
            leave_after = self.rng.randint(1, len(request.expected))
        usage = None
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                _finish(request, usage)
                return
            if not line.startswith("data: "):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                request.end(time.monotonic(), Ending.ERROR, event["error"]["message"])
                return
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                text = choice["delta"].get("content")
                if text:
                    request.receive(time.monotonic(), text)
                    limit.reschedule(asyncio.get_running_loop().time() + PATIENCE)
            if len(request.text) >= leave_after:
                request.end(time.monotonic(), Ending.CANCELLED)
                return
        raise httpx.RemoteProtocolError("the stream ended without [DONE]")


def _finish(request: Request, usage: dict[str, int] | None) -> None:
    """The answer is complete; `usage` counts its tokens."""
    request.end(time.monotonic(), Ending.ANSWERED)
    words = len(request.text.split())
    if usage and usage["completion_tokens"] != words:
        note = f"{usage['completion_tokens']} tokens counted, not {words}"
        request.end(time.monotonic(), Ending.WRONG, note)
