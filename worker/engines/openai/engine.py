"""The openai engine: a node in front of a server (vLLM, SGLang, llama.cpp, Ollama, another Canopy).

A run is one streamed request of the OpenAI-compatible API; closing it closes the connection, which
is how such servers learn of a cancel. docs/engines.md says what to expect of which server.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any

import httpx
import structlog

from broker.wire import Job, Task, TokenLogprob
from worker.engines.base import (
    Chunk,
    EngineStopped,
    EngineUnavailable,
    Footprint,
    InvalidRequest,
    Markup,
    NoFreeSlot,
    check_task,
)
from worker.engines.openai import body as request_body
from worker.engines.openai.answer import Answer
from worker.engines.openai.body import Plan
from worker.engines.openai.call import Call
from worker.engines.openai.errors import CannotContinue, Refusal, ServerFailed
from worker.engines.openai.http import FIRST_SECONDS, Server
from worker.engines.openai.models import find_model
from worker.engines.openai.sse import BadStream, EventParser
from worker.engines.openai.tools import TOOL_FORMAT

# Between two tokens of one answer; the watchdog notices a server that is silent altogether.
SILENT_SECONDS = 300.0
LAST_SECONDS = 5.0  # for the usage, which comes behind the answer
BUSY_SECONDS = 60.0  # a job refused for so long goes back into the tree
FAULT_SECONDS = 10.0  # the same where the server fails: if it is going down, that shows soon
PAUSES = (0.5, 8.0)  # seconds between tries, first and longest, if the server names none
STOP_SECONDS = 2.0

log = structlog.get_logger(__name__)


class OpenAIEngine:
    """Keeps the `Engine` protocol."""

    name = "openai"
    stuck = False  # nothing is computed here
    tasks: tuple[Task, ...] = ("generate",)
    warning = ""
    reuse = (0, 0)  # the server's business
    footprint = Footprint()  # elsewhere

    def __init__(
        self, *, model: str, slots: int, upstream: str, upstream_model: str, key: str
    ) -> None:
        """`upstream`: the server's address up to and with /v1; `upstream_model`: the model's name
        there, empty to find out.
        """
        self.model = model
        self.slots = slots
        self.device = ""  # once started, the server's address
        self.context_length = 0
        self.warm = False
        self._upstream = upstream.rstrip("/")
        self._configured_model = upstream_model
        self._key = key
        self._server: Server | None = None
        self._served_model = ""  # its name there
        self._continues = False
        self._owner = ""  # what the server calls itself
        self._refused_fields: frozenset[str] = frozenset()  # unknown to the server
        self._calls: set[Call] = set()

    @property
    def usable_slots(self) -> int:
        """All of them."""
        return self.slots

    async def start(self) -> None:
        """Finds the server and its model. Raises EngineUnavailable."""
        if not self._upstream.startswith(("http://", "https://")):
            raise EngineUnavailable(
                "the openai engine needs the address of a server: "
                "--upstream http://HOST:PORT/v1, or CANOPY_UPSTREAM"
            )
        await self.stop()
        try:
            server = Server(self._upstream, self._key)
        except httpx.InvalidURL as error:
            raise EngineUnavailable(f"--upstream is no address: {error}") from error
        self.device = server.name
        try:
            served = await find_model(
                server.client, server.name, self._configured_model, self.model
            )
        except BaseException:
            await server.client.aclose()
            raise
        self._served_model, self._owner = served.name, served.owner
        self._continues = served.owner in request_body.CONTINUES
        self.context_length = served.context_length
        self._server, self.warm = server, False
        log.info("server found", address=self.device, model=self._served_model)

    def markup(self, job: Job) -> Markup:
        """See the protocol."""
        if job.messages is None or not job.tools or job.tool_choice == "none":
            return Markup()
        return Markup(tool_format=TOOL_FORMAT)

    async def run(self, job: Job) -> AsyncIterator[Chunk]:
        """Streams the answer; see the protocol."""
        server = self._server
        if server is None:
            raise EngineStopped("the engine is not running")
        check_task(job, *self.tasks)
        if job.sampling.prompt_logprobs is not None:
            raise InvalidRequest(
                "logprobs of the prompt are not passed on by this node: leave out echo, logprobs "
                "or prompt_logprobs"
            )
        if len(self._calls) >= self.slots:
            raise NoFreeSlot(self.slots)
        call = Call()
        self._calls.add(call)
        try:
            delivered = request_body.tokens_delivered(job)
            yield Chunk(prompt_tokens=request_body.prompt_tokens(job), tokens=delivered)
            if job.sampling.max_tokens == 0:  # some servers' least is 1
                yield Chunk(finish="length")
                return
            async with contextlib.aclosing(self._answer(server, job, delivered, call)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._calls.discard(call)
            call.closed.set_result(None)

    def stalled(self) -> float:
        """Seconds since the server sent anything at all, while an answer is waited for.

        A run that waits for its first token does not count: behind a long prompt or other clients
        that may take long.
        """
        answering = [call for call in self._calls if call.answering]
        if not answering or not all(call.reading for call in answering):
            return 0.0
        return time.monotonic() - max(call.last_received for call in self._calls)

    async def stop(self) -> None:
        """Ends every run and closes the connections."""
        server, self._server = self._server, None
        for call in self._calls:
            call.stop()
        if self._calls:  # each closes its own connection, unless its reader never comes back
            await asyncio.wait([call.closed for call in self._calls], timeout=STOP_SECONDS)
        if server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await server.client.aclose()

    # ---- one answer

    async def _answer(
        self, server: Server, job: Job, delivered: int, call: Call
    ) -> AsyncGenerator[Chunk]:
        """The answer, or what is missing of it, by the first plan that the server can follow."""
        plans = request_body.plans(job, continues=self._continues)
        for plan in plans:
            stream = self._stream(server, job, plan, delivered, call)
            try:
                async with contextlib.aclosing(stream) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except CannotContinue as error:
                if plan is plans[-1]:
                    raise
                log.info("continuing in another way", request_id=job.request_id, reason=str(error))

    async def _stream(
        self, server: Server, job: Job, plan: Plan, delivered: int, call: Call
    ) -> AsyncGenerator[Chunk]:
        """The chunks of one request. Raises EngineError."""
        response = await self._accepted(server, job, plan, call)
        answer = Answer(plan, delivered, server.name, job.sampling.logprobs)
        parser = EventParser()
        try:
            body = response.aiter_bytes()
            while not answer.ended:
                received = await self._receive(server, body, answer, call)
                if received is None:
                    events = parser.end()
                else:
                    events = parser.feed(received)
                chunk = _merge_chunks([answer.push(data) for data in events])
                if answer.begun:
                    call.answering = self.warm = True
                if chunk.text or chunk.tokens or chunk.logprobs:
                    yield chunk
                if received is None:
                    break
            yield answer.last()
        except BadStream as error:
            raise await server.lost(error, call) from error
        finally:
            call.answering = False
            await response.aclose()

    async def _receive(
        self, server: Server, body: AsyncIterator[bytes], answer: Answer, call: Call
    ) -> bytes | None:
        """The next bytes; None at the end, however untidy, once the finish reason is here."""
        if answer.finish:
            seconds = LAST_SECONDS
        elif answer.begun:
            seconds = SILENT_SECONDS
        else:
            seconds = FIRST_SECONDS
        try:
            return await call.read(seconds, lambda: anext(body, None))
        except TimeoutError as error:
            if answer.finish:
                return None
            # while the server talks to others, only this run's connection is dead
            others = self._others_received_since(call.begun, call)
            message = f"{server.name} was silent for {seconds:.0f} s"
            raise ServerFailed(message, isolated=others) from error
        except httpx.HTTPError as error:
            if answer.finish:
                return None
            raise await server.lost(error, call) from error

    def _others_received_since(self, moment: float, call: Call) -> bool:
        return any(other is not call and other.last_received > moment for other in self._calls)

    async def _accepted(self, server: Server, job: Job, plan: Plan, call: Call) -> httpx.Response:
        """The response, once the server streams. Tries again while it is busy or fails."""
        pause, longest = PAUSES
        begun = time.monotonic()
        while True:
            path, body = request_body.body(
                job, self._served_model, plan, self._refused_fields, self._owner
            )
            response = await server.post(path, body, call)
            if isinstance(response, httpx.Response):
                return response
            if self._learn_unknown_fields(response, body):
                continue
            error = response.error(server.name)
            if plan.prefill and error.code == "invalid":
                raise CannotContinue(str(error)) from error
            may_pass = response.status >= 400 and error.retryable and error.isolated
            wait = response.pause(pause)
            patience = FAULT_SECONDS
            if response.busy:
                patience = BUSY_SECONDS
            if not may_pass or time.monotonic() + wait > begun + patience:
                raise error
            await call.within(wait + 1, partial(asyncio.sleep, wait))
            pause = min(longest, pause * 2)

    def _learn_unknown_fields(self, refusal: Refusal, body: dict[str, Any]) -> bool:
        """Whether the server refuses optional fields of `body`, which it is not sent again."""
        if refusal.status not in (400, 422):
            return False
        unknown = request_body.unknown_fields(refusal.text, body)
        if unknown - self._refused_fields:  # else another run has learnt it meanwhile
            log.warning(
                "the server does not know these fields; they are left out", fields=sorted(unknown)
            )
        self._refused_fields |= unknown
        return bool(unknown)


def _merge_chunks(chunks: list[Chunk]) -> Chunk:
    """What arrived at once, as one chunk."""
    if len(chunks) == 1:
        return chunks[0]
    token_logprobs: list[TokenLogprob] = []
    for chunk in chunks:
        token_logprobs += chunk.logprobs
    return Chunk(
        text="".join(chunk.text for chunk in chunks),
        tokens=sum(chunk.tokens for chunk in chunks),
        logprobs=tuple(token_logprobs),
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
    """For the table in `worker.engines`; without a model or a device of its own.

    The key comes from the environment alone: everybody on the machine can read command lines.
    """
    return OpenAIEngine(
        model=model,
        slots=slots,
        upstream=upstream or os.environ.get("CANOPY_UPSTREAM", ""),
        upstream_model=upstream_model or os.environ.get("CANOPY_UPSTREAM_MODEL", ""),
        key=os.environ.get("CANOPY_UPSTREAM_KEY", ""),
    )
