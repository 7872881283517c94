"""The users: each asks one question after the other, and records in the ledger what came of it.

| kind | what they do |
| --- | --- |
| stream | read a streamed answer |
| plain | wait for an answer in one piece |
| keyed | send an Idempotency-Key, and try again with it until there is an answer |
| cancel | close the connection in the middle |
"""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx

from bench.chaos.ledger import Ending, Ledger, Request, numbered_words
from bench.chaos.service import PATIENCE, CutShort, ErrorAnswer, Refused, Service

KINDS = ("stream", "stream", "keyed", "stream", "cancel", "plain", "keyed")
WORDS = (10, 120)  # of a question, which is its answer
PAUSE = (0.1, 1.0)  # seconds between an answer and the next question


@dataclass(frozen=True)
class User:
    """One of them; `rng` decides questions and pauses."""

    number: int
    service: Service
    ledger: Ledger
    rng: random.Random

    @property
    def kind(self) -> str:
        return KINDS[self.number % len(KINDS)]

    async def ask_until(self, stop: asyncio.Event) -> None:
        """Asks until `stop` is set; the last question is still seen to its end."""
        count = 0
        while not stop.is_set():
            text = numbered_words(f"u{self.number}q{count}", self.rng.randint(*WORDS))
            await self.ask(self.ledger.open(self.kind, text, time.monotonic()))
            count += 1
            await asyncio.sleep(self.rng.uniform(*PAUSE))

    async def ask(self, request: Request) -> None:
        try:
            ending, note = await _WAYS[self.kind](self, request)
        except Refused as error:
            request.end(time.monotonic(), Ending.REFUSED, str(error))
            self.ledger.refuse(str(error))
            await asyncio.sleep(error.retry_after * self.rng.uniform(1, 2))
        except ErrorAnswer as error:
            ending = request.wrong_text(complete=False) or Ending.ERROR
            request.end(time.monotonic(), ending, str(error))
        except TimeoutError:
            request.end(time.monotonic(), Ending.LOST, f"nothing new for {PATIENCE:.0f} s")
        except (CutShort, httpx.TransportError) as error:
            at = time.monotonic()
            ending = request.wrong_text(complete=False) or self.ledger.judge_broken(request, at)
            request.end(at, ending, repr(error))
            self.ledger.refuse(repr(error))
            await asyncio.sleep(self.rng.uniform(0.2, 1.0))
        else:
            request.end(time.monotonic(), ending, note)

    async def _stream(self, request: Request) -> tuple[Ending, str]:
        await self.service.stream(request, {})
        return _judge(request)

    async def _plain(self, request: Request) -> tuple[Ending, str]:
        await self.service.complete(request, {})
        return _judge(request)

    async def _cancel(self, request: Request) -> tuple[Ending, str]:
        leave_after = self.rng.randint(1, len(request.expected))
        if await self.service.stream(request, {}, leave_after):
            return _judge(request)
        return request.wrong_text(complete=False) or Ending.CANCELLED, ""

    async def _keyed(self, request: Request) -> tuple[Ending, str]:
        """Tries again with the same key, whatever goes wrong with the connection."""
        headers = {"Idempotency-Key": uuid.UUID(int=self.rng.getrandbits(128)).hex}
        ask = self.service.stream if self.number % 4 else self.service.complete
        while True:
            pause = 0.3
            try:
                await ask(request, headers)
                return _judge(request)
            except Refused as error:
                pause = error.retry_after
                self.ledger.refuse(str(error))
            except (CutShort, httpx.TransportError) as error:
                self.ledger.refuse(repr(error))
            wrong = request.wrong_text(complete=False)
            if wrong:
                return wrong, "before a retry"
            if time.monotonic() - (request.last_text or request.began) > PATIENCE:
                raise TimeoutError
            request.retries += 1
            await asyncio.sleep(pause * self.rng.uniform(1, 2))


_WAYS: dict[str, Callable[[User, Request], Awaitable[tuple[Ending, str]]]] = {
    "stream": User._stream,
    "plain": User._plain,
    "keyed": User._keyed,
    "cancel": User._cancel,
}


def make(count: int, service: Service, ledger: Ledger, seed: int) -> list[User]:
    """`count` users of all kinds."""
    numbers = range(count)
    return [User(i, service, ledger, random.Random(f"{seed}/{i}")) for i in numbers]


def _judge(request: Request) -> tuple[Ending, str]:
    wrong = request.wrong_text(complete=True)
    if wrong:
        return wrong, f"got {request.text[-200:]!r}, {request.tokens} tokens"
    return Ending.ANSWERED, ""
