"""The users: each asks one question after the other, and notes in the ledger what became of it.

| kind | what they do |
| --- | --- |
| stream | read a streamed answer |
| plain | wait for an answer in one piece |
| keyed | send an Idempotency-Key, and try again with it until there is an answer |
| cancel | close the connection in the middle |
| chat | write in a conversation of the chat page, follow the answer, and read back what is stored (chat.py) |
"""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx

from bench.load import chat, http
from bench.load.http import CutShort, Refused, Service, Told
from bench.load.ledger import Ending, Ledger, Request, judge, numbered_words

KINDS = (
    "stream",
    "stream",
    "keyed",
    "stream",
    "chat",
    "stream",
    "cancel",
    "plain",
    "stream",
    "keyed",
)
WORDS = (10, 120)  # of a question, which is its answer
PAUSE = (0.1, 1.0)  # seconds between an answer and the next question


@dataclass(frozen=True)
class User:
    """One of them. `dice` makes questions and pauses."""

    number: int
    service: Service
    ledger: Ledger
    dice: random.Random

    @property
    def kind(self) -> str:
        """What this one does."""
        return KINDS[self.number % len(KINDS)]

    async def ask_until(self, stop: asyncio.Event) -> None:
        """Asks until told to stop; the last question is still seen to its end."""
        asked = 0
        while not stop.is_set():
            text = numbered_words(f"u{self.number}q{asked}", self.dice.randint(*WORDS))
            request = self.ledger.open(self.kind, text, time.monotonic())
            await self.see_to_its_end(request)
            asked += 1
            await asyncio.sleep(self.dice.uniform(*PAUSE))

    async def see_to_its_end(self, request: Request) -> None:
        try:
            ending, note = await _ASK[self.kind](self, request)
        except Refused as error:
            request.end(time.monotonic(), Ending.REFUSED, str(error))
            self.ledger.turn_away(str(error))
            await asyncio.sleep(error.after * self.dice.uniform(1, 2))
        except Told as error:
            request.end(time.monotonic(), _wrong_text(request) or Ending.TOLD, str(error))
        except TimeoutError:
            request.end(time.monotonic(), Ending.LOST, f"nothing new for {http.PATIENCE:.0f} s")
        except (CutShort, httpx.TransportError) as error:
            at = time.monotonic()
            ending = _wrong_text(request) or self.ledger.judge_broken(request, at)
            request.end(at, ending, repr(error))
            self.ledger.turn_away(repr(error))
            await asyncio.sleep(self.dice.uniform(0.2, 1.0))
        else:
            request.end(time.monotonic(), ending, note)

    async def stream(self, request: Request) -> tuple[Ending, str]:
        """See the table. So the others."""
        await http.streamed(self.service, request, {})
        return _judged(request)

    async def plain(self, request: Request) -> tuple[Ending, str]:
        """In one piece."""
        await http.whole(self.service, request, {})
        return _judged(request)

    async def cancel(self, request: Request) -> tuple[Ending, str]:
        """Reads some words and leaves."""
        some = self.dice.randint(1, len(request.expected))
        whole = await http.streamed(self.service, request, {}, lambda text: len(text) >= some)
        return _judged(request) if whole else (_wrong_text(request) or Ending.CANCELLED, "")

    async def keyed(self, request: Request) -> tuple[Ending, str]:
        """Tries again, with the same key, whatever goes wrong with the connection."""
        headers = {"Idempotency-Key": uuid.UUID(int=self.dice.getrandbits(128)).hex}
        ask = http.streamed if self.number % 4 else http.whole
        while True:
            try:
                await ask(self.service, request, headers)
                return _judged(request)
            except (Refused, CutShort, httpx.TransportError) as error:
                pause = error.after if isinstance(error, Refused) else 0.3
                self.ledger.turn_away(str(error) if isinstance(error, Refused) else repr(error))
            if wrong := _wrong_text(request):
                return wrong, "before a retry"
            if time.monotonic() - (request.heard_last or request.began) > http.PATIENCE:
                raise TimeoutError
            request.retries += 1
            await asyncio.sleep(pause * self.dice.uniform(1, 2))

    async def chat(self, request: Request) -> tuple[Ending, str]:
        """In a conversation of its own."""
        return await chat.turn(self.service, request)


_ASK: dict[str, Callable[[User, Request], Awaitable[tuple[Ending, str]]]] = {
    "stream": User.stream, "plain": User.plain, "keyed": User.keyed, "cancel": User.cancel, "chat": User.chat,
}  # fmt: skip


def crowd(count: int, service: Service, ledger: Ledger, seed: int) -> list[User]:
    """`count` users of all kinds."""
    return [
        User(number, service, ledger, random.Random(f"{seed}/{number}")) for number in range(count)
    ]


def _judged(request: Request) -> tuple[Ending, str]:
    wrong = judge(request.expected, request.text, request.tokens)
    return (
        (wrong, f"got {request.text[-200:]!r}, {request.tokens} tokens")
        if wrong
        else (Ending.ANSWERED, "")
    )


def _wrong_text(request: Request) -> Ending | None:
    return judge(request.expected, request.text, whole=False)
