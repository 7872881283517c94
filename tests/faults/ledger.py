"""The account of one fault: jobs with known answers, and what became of each."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Sequence

from broker.client import Client
from broker.errors import Unavailable
from broker.stream import Stream
from broker.wire import ChatMessage, FailureCode, Job, Sampling
from tests.faults.account import Answer, count
from tests.faults.table import Row

SECONDS = 60.0


class Ledger:
    """Submits jobs through `client` and reads every stream as it comes."""

    def __init__(self, client: Client, fault: str, where: str, *, model: str = "echo") -> None:
        self.answers: list[Answer] = []
        self._client = client
        self._fault, self._where = fault, where
        self._model = model
        self._numbers = itertools.count()
        self._readers: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self._struck: list[tuple[Answer, float]] = []

    async def submit(self, jobs: int, tokens: int = 40, *, patience: float = 0.0) -> list[Answer]:
        """Submits so many jobs; returns once all are accepted. Raises Unavailable or NoTree.

        `patience`: seconds for which one that is refused as Unavailable is submitted again.
        """
        deadline = time.monotonic() + patience
        return list(await asyncio.gather(*(self._ask_until(deadline, tokens) for _ in range(jobs))))

    async def _ask_until(self, deadline: float, tokens: int) -> Answer:
        while True:
            try:
                return await self.ask(tokens)
            except Unavailable:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(0.05)  # as clients pause before they try again

    async def ask(
        self, tokens: int, text: str = "", *, failing: FailureCode | None = None
    ) -> Answer:
        """Submits a job of `tokens` words: numbered, or from `text`. `failing`: how it must end."""
        answer = Answer(next(self._numbers), tokens, uuid.uuid4().hex, text, failing)
        self.answers.append(answer)
        message = ChatMessage(role="user", content=answer.question)
        job = Job(
            request_id=answer.request_id,
            model=self._model,
            reply_to="",
            created=time.time(),
            messages=(message,),
            sampling=Sampling(max_tokens=tokens),
        )
        try:
            stream = await self._client.submit(job)
        except BaseException:
            self.answers.remove(answer)  # not accepted: nothing was promised
            raise
        self._readers.append(
            asyncio.create_task(self._read(answer, stream), name=f"reader of {answer.number}")
        )
        return answer

    async def until(self, condition: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Returns when the condition, checked at each frame, holds. Fails after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(
                "\n".join(["it did not come to that:", *map(str, self.answers)])
            ) from None

    def on(self, node: str) -> list[Answer]:
        """Those that run on that node and have some text."""
        return [each for each in self.running() if each.node == node]

    def running(self) -> list[Answer]:
        """Those whose text has begun and not ended."""
        return [each for each in self.answers if each.node and each.pieces]

    def ended(self) -> int:
        """How many have ended."""
        return sum(each.end is not None for each in self.answers)

    def placed(self) -> bool:
        """Whether each runs, waits or has ended."""
        return all(each.nodes or each.waiting for each in self.answers)

    def strike(self, answers: Sequence[Answer]) -> None:
        """The fault happens now, to these: their recovery counts."""
        now = time.monotonic()
        self._struck += [(each, now) for each in answers]

    async def settled(self, seconds: float = SECONDS) -> list[str]:
        """Waits for every end, `seconds` at most; what is wrong, a line each."""
        if self._readers:
            await asyncio.wait(self._readers, timeout=seconds)
        await self.close()
        return [
            each.complaint() for each in self.answers if each.verdict() not in ("answered", "told")
        ]

    async def close(self) -> None:
        """Stops reading."""
        for reader in self._readers:
            reader.cancel()
        for outcome in await asyncio.gather(*self._readers, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        self._readers.clear()

    def row(self) -> Row:
        """For the table."""
        return Row(
            fault=self._fault,
            where=self._where,
            accepted=len(self.answers),
            answered=count(self.answers, "answered"),
            told=count(self.answers, "told"),
            lost=count(self.answers, "lost"),
            wrong=count(self.answers, "wrong", "failed"),
            recoveries=tuple(each.silence(at) for each, at in self._struck if each.end is not None),
        )

    async def _read(self, answer: Answer, stream: Stream) -> None:
        async for frame in stream:
            answer.take(frame, time.monotonic())
            self._news.set()
