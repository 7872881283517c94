"""One job's run on an engine: chunks in, numbered frames out, one final frame whatever happens."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

import structlog

from broker.wire import AnyFrame, Delta, Failed, FailureCode, Finished, FinishReason, FrameNumber, Job, Start
from worker.engines.base import Chunk, Engine, EngineError

log = structlog.get_logger()


class JobRun:
    """Runs `job` once. `send` takes every frame but the last, which `run` returns."""

    def __init__(self, engine: Engine, job: Job, node: str, send: Callable[[AnyFrame], None]) -> None:
        self.job = job
        self.tokens = 0
        self._engine = engine
        self._node = node
        self._send = send
        self._seq = job.seq
        self._prompt_tokens = 0
        self._task: asyncio.Task[Finished | Failed] | None = None
        self._cancelled = False

    async def run(self) -> Finished | Failed:
        """The final frame. Cancelling the task that awaits this abandons the run: CancelledError, no final frame."""
        self._task = asyncio.create_task(self._stream(), name=f"job {self.job.request_id}")
        try:
            async with asyncio.timeout(self._seconds_left()):
                return await self._task
        except TimeoutError:
            return self._failed("expired", "the deadline of the request passed while it ran")
        except EngineError as error:
            return self._failed(error.code, str(error), retryable=error.retryable)
        except asyncio.CancelledError:
            if self._cancelled:
                return self._finished("cancelled")
            raise
        except Exception as error:  # fate: this job fails and says so; a fault in it must not end the others
            log.exception("job failed", request_id=self.job.request_id)
            return self._failed("internal", f"{type(error).__name__}: {error}")

    def cancel(self) -> None:
        """Nobody wants the answer: the slot is freed within one decoding step, `run` returns Finished("cancelled")."""
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    async def _stream(self) -> Finished | Failed:
        if self._cancelled:
            return self._finished("cancelled")
        started = False
        async with aclosing(self._engine.run(self.job)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if not started:
                    started = True
                    self._prompt_tokens = chunk.prompt_tokens
                    self._send(Start(**self._number(), node=self._node, prompt_tokens=chunk.prompt_tokens))
                self._pass_on(chunk)
                if chunk.finish is not None:
                    return self._finished(chunk.finish)
        return self._failed("internal", "the engine ended the answer without a reason")

    def _pass_on(self, chunk: Chunk) -> None:
        self.tokens += chunk.tokens
        if chunk.text:
            self._send(Delta(**self._number(), text=chunk.text, tokens=chunk.tokens))

    def _finished(self, reason: FinishReason) -> Finished:
        return Finished(
            **self._number(), reason=reason, prompt_tokens=self._prompt_tokens, completion_tokens=self.tokens
        )

    def _failed(self, code: FailureCode, message: str, *, retryable: bool = False) -> Failed:
        return Failed(**self._number(), code=code, message=message, retryable=retryable)

    def _number(self) -> FrameNumber:
        """Identity of the next frame."""
        seq, self._seq = self._seq, self._seq + 1
        return {"request_id": self.job.request_id, "attempt": self.job.attempt, "seq": seq}

    def _seconds_left(self) -> float | None:
        return None if self.job.deadline is None else max(0.0, self.job.deadline - time.time())
