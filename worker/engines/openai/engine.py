"""The openai engine: a node that stands before a server of its own kind (vLLM, SGLang, llama.cpp, Ollama, another
Canopy), and hands it jobs by the OpenAI-compatible API.

A run is one streamed request; closing it closes the connection, which is how such servers learn of a cancel. What they
differ in is in `upstream`: bodies, refusals, events. docs/engines.md says what to expect of which server.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial

import httpx
import structlog

from broker.wire import Job
from worker.engines.base import Chunk, EngineError, EngineStopped, EngineUnavailable
from worker.engines.openai import body as upstream_body
from worker.engines.openai.answer import Answer, CannotContinue
from worker.engines.openai.body import Plan
from worker.engines.openai.call import Call
from worker.engines.openai.http import FIRST_SECONDS, Server
from worker.engines.openai.models import choose
from worker.engines.openai.sse import BadStream, Events

SILENT_SECONDS = 300.0  # between two tokens of one answer; the watchdog looks after a server that is silent altogether
LAST_SECONDS = 5.0  # for the usage, which comes behind the answer
BUSY_SECONDS = 60.0  # a request that is refused for so long goes back into the tree
FAULT_SECONDS = 10.0  # the same where the server fails: if it is about to end, that is known soon
PAUSES = (0.5, 8.0)  # seconds between tries, first and longest, if the server names none
STOP_SECONDS = 2.0
_CONTINUES = {
    "vllm",
    "sglang",
    "llamacpp",
}  # as they call themselves: they go on from a last message of the assistant

log = structlog.get_logger(__name__)


class OpenAIEngine:
    """Keeps the `Engine` protocol."""

    name = "openai"
    stuck = False  # nothing is computed here
    warning = ""

    def __init__(
        self, *, model: str, slots: int, upstream: str, upstream_model: str, key: str
    ) -> None:
        """`upstream`: the server's address up to and with /v1; `upstream_model`: its name there, empty to find out."""
        self.model = model
        self.slots = slots
        self.device = ""  # where the computing happens: the server's address
        self.context_length = 0  # as the server tells it
        self.warm = False
        self._upstream = upstream.rstrip("/")
        self._wanted = upstream_model
        self._key = key
        self._server: Server | None = None
        self._served = ""  # the model's name there
        self._continues = False
        self._refused: frozenset[str] = frozenset()  # fields that the server does not know
        self._open: set[Call] = set()

    async def start(self) -> None:
        """Finds the server and its model. Raises EngineUnavailable."""
        if not self._upstream.startswith(("http://", "https://")):
            raise EngineUnavailable(
                "the openai engine needs the address of a server: --upstream http://HOST:PORT/v1, or CANOPY_UPSTREAM"
            )
        await self.stop()
        try:
            server = Server(self._upstream, self._key)
        except httpx.InvalidURL as error:
            raise EngineUnavailable(f"--upstream is no address: {error}") from error
        self.device = server.name
        try:
            found = await choose(server.client, server.name, self._wanted, self.model)
        except BaseException:
            await server.client.aclose()
            raise
        self._served, self._continues = found.name, found.owner in _CONTINUES
        self.context_length = found.context_length
        self._server, self.warm = server, False
        log.info("server found", address=self.device, model=self._served)

    async def run(self, job: Job) -> AsyncIterator[Chunk]:
        """Streams the answer; see the protocol."""
        server = self._server
        if server is None:
            raise EngineStopped("the engine is not running")
        if len(self._open) >= self.slots:
            raise EngineError(
                "engine", f"all {self.slots} slots are taken", retryable=True, alone=True
            )
        call = Call()
        self._open.add(call)
        try:
            told = upstream_body.tokens_delivered(job)
            yield Chunk(prompt_tokens=upstream_body.prompt_tokens(job), tokens=told)
            async with contextlib.aclosing(self._by_any_plan(server, job, told, call)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._open.discard(call)
            call.closed.set_result(None)

    reuse = (0, 0)  # the server's business

    def stalled(self) -> float:
        """Seconds since the server sent anything at all, while an answer is under way and waited for. Who waits for a
        first token does not count: behind a long prompt or other clients that takes its time.
        """
        answering = [call for call in self._open if call.answering]
        if not answering or not all(call.reading for call in answering):
            return 0.0
        return time.monotonic() - max(call.heard for call in self._open)

    async def stop(self) -> None:
        """Ends every run and closes the connections."""
        server, self._server = self._server, None
        for call in self._open:
            call.stop()
        if self._open:  # each closes its own connection, unless its reader does not come back
            await asyncio.wait([call.closed for call in self._open], timeout=STOP_SECONDS)
        if server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await server.client.aclose()

    # ---- one answer

    async def _by_any_plan(
        self, server: Server, job: Job, told: int, call: Call
    ) -> AsyncGenerator[Chunk]:
        """The answer, or what is missing of it, in the first way that turns out to be possible."""
        ways = upstream_body.plans(job, continues=self._continues)
        for plan in ways:
            try:
                async with contextlib.aclosing(
                    self._stream(server, job, plan, told, call)
                ) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except CannotContinue as error:
                if plan is ways[-1]:
                    raise
                log.info("continuing in another way", request_id=job.request_id, reason=str(error))

    async def _stream(
        self, server: Server, job: Job, plan: Plan, told: int, call: Call
    ) -> AsyncGenerator[Chunk]:
        """The chunks of one request. Raises EngineError."""
        response = await self._accepted(server, job, plan, call)
        answer, events = Answer(plan, told, server.name, job.sampling.logprobs), Events()
        try:
            pieces = response.aiter_bytes()
            while not answer.ended:
                piece = await self._piece(server, pieces, answer, call)
                found = events.end() if piece is None else events.feed(piece)
                chunk = _joined([answer.push(data) for data in found])
                if answer.begun:
                    call.answering = self.warm = True
                if chunk.text or chunk.tokens or chunk.logprobs:
                    yield chunk
                if piece is None:
                    break
            yield answer.last()
        except BadStream as error:
            raise await server.lost(error, call) from error
        finally:
            call.answering = False
            await response.aclose()

    async def _piece(
        self, server: Server, pieces: AsyncIterator[bytes], answer: Answer, call: Call
    ) -> bytes | None:
        """The next bytes; None at the end, also at one that is untidy but comes behind the finish reason."""
        seconds = (
            LAST_SECONDS if answer.finish else SILENT_SECONDS if answer.begun else FIRST_SECONDS
        )
        try:
            return await call.read(seconds, lambda: anext(pieces, None))
        except TimeoutError as error:
            if answer.finish:
                return None
            others = any(each.heard > call.begun for each in self._open if each is not call)
            message = f"{server.name} was silent for {seconds:.0f} s"
            raise EngineError("engine", message, retryable=True, alone=others) from error
        except httpx.HTTPError as error:
            if answer.finish:
                return None
            raise await server.lost(error, call) from error

    async def _accepted(self, server: Server, job: Job, plan: Plan, call: Call) -> httpx.Response:
        """The response, when the server has begun to stream. One that is busy, or fails, is asked again."""
        pause, longest = PAUSES
        begun = time.monotonic()
        while True:
            path, body = upstream_body.body(job, self._served, plan, self._refused)
            answered = await server.ask(path, body, call)
            if isinstance(answered, httpx.Response):
                return answered
            unknown = (
                upstream_body.unknown_fields(answered.text, body)
                if answered.status in (400, 422)
                else frozenset()
            )
            if unknown:
                if unknown - self._refused:  # else another run has found it out meanwhile
                    log.warning(
                        "the server does not know these fields; they are left out",
                        fields=sorted(unknown),
                    )
                self._refused |= unknown
                continue
            error = answered.error(server.name)
            if plan.prefill and error.code == "invalid":
                raise CannotContinue(str(error)) from error
            wait, patience = answered.pause(pause), BUSY_SECONDS if answered.busy else FAULT_SECONDS
            if (
                answered.status < 400
                or not error.alone
                or time.monotonic() + wait > begun + patience
            ):
                raise error
            await call.within(wait + 1, partial(asyncio.sleep, wait))
            pause = min(longest, pause * 2)


def _joined(chunks: list[Chunk]) -> Chunk:
    """What came in one piece, as one chunk."""
    if len(chunks) == 1:
        return chunks[0]
    return Chunk(
        text="".join(chunk.text for chunk in chunks),
        tokens=sum(chunk.tokens for chunk in chunks),
        logprobs=tuple(each for chunk in chunks for each in chunk.logprobs),
    )


def create(
    *,
    model: str,
    model_path: str | None,
    device: str,
    slots: int,
    token_delay: float,
    upstream: str = "",
    upstream_model: str = "",
) -> OpenAIEngine:
    """For the table in `worker.engines`; without a model or a device of its own. The key comes from the environment
    alone: command lines can be read by everybody on the machine.
    """
    return OpenAIEngine(
        model=model,
        slots=slots,
        upstream=upstream or os.environ.get("CANOPY_UPSTREAM", ""),
        upstream_model=upstream_model or os.environ.get("CANOPY_UPSTREAM_MODEL", ""),
        key=os.environ.get("CANOPY_UPSTREAM_KEY", ""),
    )
