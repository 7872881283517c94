"""Innocent requests that go on beside a hostile one, and what they notice of it."""

import asyncio
import json
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Self

import httpx

READERS = 2
ANSWER_SECONDS = 120.0  # an answer that takes longer counts as lost
PATIENCE_SECONDS = 0.5  # after a refusal, until the next try


class Refused(Exception):
    """The service cannot take a request now, and says why: nothing was promised."""


@dataclass
class Noticed:
    """What came of the innocent requests of a while. Times are seconds."""

    answers: int = 0
    refused: list[str] = field(default_factory=list)  # 503, with the reason
    lost: list[str] = field(
        default_factory=list
    )  # failed, cut off or with another text; a line each
    seconds: list[float] = field(default_factory=list)  # that each answer took
    pause: float = 0.0  # the longest time between two pieces of text of one answer

    @property
    def typical(self) -> float:
        """What an answer took, the median."""
        return median(self.seconds) if self.seconds else float("inf")


class Innocents:
    """READERS programs that ask the same question again and again and read the streamed answers.

    A seed makes answers to one question equal in any company, so a text that differs from the first
    one is wrong.
    """

    def __init__(self, url: str, key: str, model: str, tokens: int) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=ANSWER_SECONDS)
        self._body = {
            "model": model,
            "messages": [{"role": "user", "content": "Tell me of the seven seas and their ships"}],
            "max_tokens": tokens,
            "temperature": 0,
            "seed": 7,
            "stream": True,
        }
        self._expected = ""

    async def __aenter__(self) -> Self:
        self._expected = await self._ask(Noticed())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, answers: int) -> Noticed:
        """So many answers a reader."""
        noticed = Noticed()
        await asyncio.gather(*(self._read(noticed, answers) for _ in range(READERS)))
        return noticed

    async def beside(self, hostile: Coroutine[Any, Any, None], answers: int) -> Noticed:
        """Runs beside `hostile`, for at least so many answers a reader. Raises its errors."""
        noticed = Noticed()
        attack = asyncio.create_task(hostile, name="hostile")
        readers = [self._read(noticed, answers, attack) for _ in range(READERS)]
        await asyncio.gather(*readers)
        await attack
        return noticed

    async def _read(
        self, noticed: Noticed, answers: int, attack: "asyncio.Task[None] | None" = None
    ) -> None:
        count = 0
        while count < answers or (attack is not None and not attack.done()):
            began = time.monotonic()
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    text = await self._ask(noticed)
            except Refused as refusal:
                noticed.refused.append(str(refusal))
                await asyncio.sleep(PATIENCE_SECONDS)
                continue
            except (httpx.HTTPError, TimeoutError, ValueError) as error:
                noticed.lost.append(repr(error))
            else:
                noticed.seconds.append(time.monotonic() - began)
                if text != self._expected:
                    noticed.lost.append(f"another text: {text!r}")
            noticed.answers += 1
            count += 1

    async def _ask(self, noticed: Noticed) -> str:
        pieces: list[str] = []
        heard = None
        last = ""
        async with self._http.stream("POST", "/v1/chat/completions", json=self._body) as answer:
            if answer.status_code == 503:
                raise Refused((await answer.aread()).decode())
            if answer.status_code != 200:
                raise ValueError(f"{answer.status_code} {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                last = line or last
                piece = _text(line)
                if not piece:
                    continue
                now = time.monotonic()
                if heard is not None:
                    noticed.pause = max(noticed.pause, now - heard)
                heard = now
                pieces.append(piece)
        if last != "data: [DONE]":
            raise ValueError(f"cut off after {''.join(pieces)!r}: {last}")
        return "".join(pieces)


def _text(line: str) -> str:
    """The text in one line of a stream of server-sent events."""
    if not line.startswith("data: {"):
        return ""
    choices = json.loads(line.removeprefix("data: ")).get("choices", ())
    return "".join(choice["delta"].get("content") or "" for choice in choices)
