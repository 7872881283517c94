"""One job's run on an engine: chunks in, numbered frames out, one ending whatever happens."""

import asyncio
import time
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
import structlog

from broker.wire import (
    MAX_ATTEMPTS,
    NO_RUN,
    AnyFrame,
    Delta,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    FrameNumber,
    Interrupted,
    Job,
    ResumeGrant,
    Start,
    Vectors,
)
from worker.chunk_joiner import ChunkJoiner
from worker.chunk_parts import parts, row_parts
from worker.engines.base import Chunk, Engine, EngineError
from worker.rw_lock import ReadersWriterLock

Ending = Finished | Failed | Interrupted
NO_FAULT_OF_NODES: tuple[FailureCode, ...] = ("invalid", "too_long", "expired", "cancelled")
log = structlog.get_logger()


class ReplyChannel(Protocol):
    """The way to the reader of one answer."""

    def send(self, frame: AnyFrame) -> None:
        """Sends it soon."""

    async def confirm(self, frame: AnyFrame) -> None:
        """Sends it and returns when the broker has it."""

    async def request_resume(self, number: int) -> ResumeGrant:
        """Asks where to continue. Cancelled if nobody reads any more."""

    async def flowing(self) -> None:
        """Returns when the broker takes messages: at once, except during an alarm."""


class JobRun:
    """Runs `job` once. `channel` gets every frame but the last, which `run` returns.

    `number` identifies the run within the node's `incarnation`. `expires`: time.monotonic() until
    which the answer is wanted. `way`: see PendingJob.way_to.
    """

    def __init__(
        self,
        engine: Engine,
        job: Job,
        node: str,
        incarnation: str,
        number: int,
        channel: ReplyChannel,
        lock: ReadersWriterLock,
        expires: float | None = None,
        way: tuple[tuple[str, ...], tuple[float, ...]] = ((), ()),
    ) -> None:
        self.job = job
        self.number = number
        self.tokens = 0
        self.prompt_tokens = 0
        self._told_prompt_tokens = False
        self.began = time.monotonic()
        self.first_text: float | None = None  # when it came, time.monotonic()
        self.faults: tuple[str, ...] = ()  # of earlier runs
        self.resuming = job.restarted  # the ResumeGrant, with the attempt, has not come yet
        self.isolated = False  # the engine interrupted this run alone and works on
        self._engine = engine
        self._node = node
        self._incarnation = incarnation
        self._channel = channel
        self._lock = lock
        self._expires = expires
        self._way = way
        self._seq = 0
        self._omitted_messages = self._cached_tokens = 0
        self._skipped_logprobs = job.delivered_prompt_logprobs  # that its reader has
        self._joiner = ChunkJoiner(job.flush_seconds) if job.flush_seconds else None
        self._task: asyncio.Task[Any] | None = None  # the one that runs it
        self._stopped: Ending | None = None

    @property
    def begun(self) -> bool:
        """True once Start was sent to the reader."""
        return self._seq > 0

    @property
    def stopped(self) -> bool:
        """True if it was ended from outside, not by the engine."""
        return self._stopped is not None

    async def run(self) -> Ending:
        """Runs the job and returns how it ended.

        Cancelling the task that awaits this abandons the run: CancelledError and no ending.
        """
        self._task = asyncio.current_task()
        try:
            async with asyncio.timeout(self._seconds_left()):
                return await self._run()
        except TimeoutError:
            return self._failed("expired", "the deadline of the request passed while it ran")
        except EngineError as error:
            self._send_held()
            if error.retryable:
                self.isolated = error.isolated
                return Interrupted(**self._number(), reason=str(error), fault=error.suspect)
            return self._failed(error.code, str(error))
        except asyncio.CancelledError:
            if self._stopped is None or self._task is None or self._task.uncancel():
                raise
            self._send_held()
            return msgspec.structs.replace(self._stopped, **self._number())
        except Exception as error:
            # fate: this job fails and says so; a fault in it must not end the others
            log.exception("job failed", request_id=self.job.request_id)
            return self._failed("internal", f"{type(error).__name__}: {error}")

    def cancel(self) -> None:
        """Nobody wants the answer: `run` returns Finished("cancelled") within a decoding step."""
        self._stop(self._finished("cancelled"))

    def fail(self, code: FailureCode, message: str) -> None:
        """Its answer is not to be: `run` returns Failed within a decoding step."""
        self._stop(self._failed(code, message))

    @property
    def trail(self) -> tuple[str, ...]:
        """The nodes on the job's way, this one last."""
        trail, _ = self._way
        return trail

    def interrupt(self, reason: str, *, fault: bool) -> None:
        """The job must continue elsewhere: `run` returns Interrupted."""
        self._stop(
            Interrupted(request_id=self.job.request_id, reason=reason, fault=fault and self.begun)
        )

    def fault_of_node(self, ending: Ending) -> str | None:
        """Why it failed, if that was a fault of the node: an operator is to hear of it."""
        if isinstance(ending, Interrupted) and not self.stopped:
            return ending.reason
        if isinstance(ending, Failed) and ending.code not in NO_FAULT_OF_NODES:
            return ending.message
        return None

    def _stop(self, ending: Ending) -> None:
        if self._stopped is None:
            self._stopped = ending
            if self._task is not None:
                self._task.cancel()

    async def _run(self) -> Ending:
        if self._stopped is not None:
            return self._stopped
        if not self.resuming:
            async with self._lock.shared():
                self._channel.send(self._start())
                return await self._stream()
        await self._resume()
        if len(self.faults) >= MAX_ATTEMPTS:
            faults = "; ".join(self.faults)
            return self._failed(
                "given_up", f"given up after {len(self.faults)} lost runs: {faults}"
            )
        is_last = len(self.faults) == MAX_ATTEMPTS - 1
        async with self._lock.exclusive() if is_last else self._lock.shared():
            # the reader must know of this run before it can kill the node
            await self._channel.confirm(self._start())
            return await self._stream()

    async def _resume(self) -> None:
        """Gets from the reader the attempt, the text to continue, and the faults of lost runs."""
        grant = await self._channel.request_resume(self.number)
        self.faults = grant.faults
        self.resuming = False
        self.job = msgspec.structs.replace(
            self.job,
            attempt=grant.attempt,
            restarted=False,
            delivered=grant.delivered,
            delivered_ids=grant.delivered_ids,
            delivered_tokens=grant.delivered_tokens,
            delivered_prompt_logprobs=grant.delivered_prompt_logprobs,
            delivered_inputs=grant.delivered_inputs,
        )
        self._skipped_logprobs = grant.delivered_prompt_logprobs

    async def _stream(self) -> Ending:
        async with aclosing(self._engine.run(self.job)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                await self._channel.flowing()
                self.prompt_tokens = chunk.prompt_tokens or self.prompt_tokens
                self._cached_tokens = chunk.cached_tokens or self._cached_tokens
                self._omitted_messages = chunk.omitted_messages or self._omitted_messages
                self.tokens += chunk.tokens
                if chunk.prompt_logprobs or self.job.task != "generate":
                    self._send_parts(chunk)
                elif self._joiner is None:
                    self._send_delta(chunk)
                elif chunk.text or chunk.logprobs:
                    self._send_joined(self._joiner.add(chunk, time.monotonic()))
                if chunk.finish is not None:
                    self._send_held()
                    return self._finished(chunk.finish)
        return self._failed("internal", "the engine ended the answer without a reason")

    def _send_parts(self, chunk: Chunk) -> None:
        """Sends what may be large in several frames: a prompt's own tokens, texts, vectors."""
        had = self._skipped_logprobs
        if chunk.prompt_logprobs and had:
            self._skipped_logprobs = 0
            chunk = msgspec.structs.replace(chunk, prompt_logprobs=chunk.prompt_logprobs[had:])
        for part in parts(chunk):
            self._send_delta(part)
        self._send_rows(chunk.rows)

    def _send_held(self) -> None:
        """Before the run's end is told, which is of all its text."""
        if self._joiner is not None:
            self._send_joined(self._joiner.take())

    def _send_joined(self, chunk: Chunk | None) -> None:
        if chunk is not None:
            self._send_delta(chunk)

    def _send_delta(self, chunk: Chunk) -> None:
        tokenized = chunk.ids if self.job.task == "tokenize" else ()
        if chunk.text or chunk.logprobs or chunk.prompt_logprobs or tokenized:
            if self.first_text is None and chunk.text:
                self.first_text = time.monotonic()
            delta = Delta(
                **self._next_number(),
                text=chunk.text,
                tokens=chunk.tokens,
                ids=chunk.ids,
                logprobs=chunk.logprobs,
                prompt_tokens=self._untold_prompt_tokens(),
                prompt_logprobs=chunk.prompt_logprobs,
            )
            self._channel.send(delta)

    def _untold_prompt_tokens(self) -> int:
        told, self._told_prompt_tokens = self._told_prompt_tokens, True
        return 0 if told else self.prompt_tokens

    def _send_rows(self, rows: tuple[bytes, ...]) -> None:
        for part in row_parts(rows):
            if self.first_text is None:
                self.first_text = time.monotonic()
            self._channel.send(Vectors(**self._next_number(), rows=part))

    def _start(self) -> Start:
        trail, waits = self._way
        markup = self._engine.markup(self.job)
        return Start(
            **self._next_number(),
            node=self._node,
            incarnation=self._incarnation,
            trail=trail,
            waits=waits,
            tool_format=markup.tool_format,
            reasoning_format=markup.reasoning_format,
        )

    def _finished(self, reason: FinishReason) -> Finished:
        return Finished(
            **self._number(),
            reason=reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.tokens,
            cached_tokens=self._cached_tokens,
            omitted_messages=self._omitted_messages,
        )

    def _failed(self, code: FailureCode, message: str) -> Failed:
        return Failed(**self._number(), code=code, message=message)

    def _next_number(self) -> FrameNumber:
        """Identity of the next frame, which is sent now."""
        number = self._number()
        self._seq += 1
        return number

    def _number(self) -> FrameNumber:
        """Identity of the next frame, should it be the last."""
        # while resuming, a new attempt may be granted without this node knowing its number
        seq = NO_RUN if self.resuming else self._seq
        return {"request_id": self.job.request_id, "attempt": self.job.attempt, "seq": seq}

    def _seconds_left(self) -> float | None:
        if self._expires is None:
            return None
        return max(0.0, self._expires - time.monotonic())
