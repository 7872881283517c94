"""Answers for those who wait for them: begun, read to their end."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from api import sse, submission
from api.accounts.auth import AuthRequest
from api.answers import following
from api.catalog import nobody_serves
from api.kept import idempotency
from broker.wire import AnyFrame, Delta, Failed, Finished, Job, Waiting


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer on its way to one reader. `frames`: None in silence. Closing `source` ends the reading, and the job
    with it if nobody but this reader wants it.
    """

    request_id: str
    created: int  # Unix seconds
    frames: AsyncIterator[AnyFrame | None]
    source: sse.Closable
    waiting: str | None = None  # why nothing will come at once, if that is known already
    replayed: bool = False  # begun by an earlier request with the same Idempotency-Key

    def headers(self, waited: str | None = None) -> dict[str, str]:
        """The response headers that identify a request."""
        found = {"X-Request-Id": self.request_id}
        if self.replayed:
            found["Idempotent-Replay"] = "true"
        if waited:
            found["X-Canopy-Waited"] = " ".join(waited.split()).encode("ascii", "replace").decode()
        return found


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. `waited`: why it did not start at once, if it had to wait."""

    text: str
    end: Finished
    waited: str | None


async def begin(request: AuthRequest, job: Job) -> Begun:
    """Begins the answer, or finds the one that the request's Idempotency-Key names. Raises ApiError."""
    key = idempotency.key_of(request)
    if key is None:
        waiting = nobody_serves(job.model)
        stream = await submission.submit(job)
        return Begun(job.request_id, int(job.created), sse.ticking(stream), stream, waiting)
    kept, replayed = await idempotency.attach(request, key, job)
    frames = following.follow(kept)
    return Begun(kept.request_id, int(kept.created.timestamp()), frames, frames, replayed=replayed)


async def complete(begun: Begun, prompt_field: str) -> Answer:
    """Reads the answer to its end; being cancelled cancels the job, unless it has an Idempotency-Key.

    Raises ApiError if the job fails; `prompt_field` is blamed for a prompt that is too long.
    """
    waited = begun.waiting
    pieces: list[str] = []
    end: Finished | Failed | None = None
    async with aclosing(begun.source):
        async for frame in begun.frames:
            match frame:
                case Delta():
                    pieces.append(frame.text)
                case Waiting():
                    waited = frame.reason
                case Failed() | Finished():
                    end = frame
    if isinstance(end, Failed):
        raise submission.failure(end, prompt_field)
    if end is None:
        raise AssertionError("a stream ended without an end frame")
    return Answer("".join(pieces), end, waited)
