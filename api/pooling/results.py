"""Runs a job that makes vectors or scores, and reads its rows."""

import struct
from contextlib import aclosing
from dataclasses import dataclass

from api.accounts.auth import AuthRequest
from api.answers.row_text import as_rows
from api.errors import ApiError
from api.idempotency.attach import HEADER, key_of
from api.requests.complete import start
from api.requests.errors import job_failure
from broker.wire import Delta, Failed, Finished, Job, Vectors, Waiting

MAX_KEPT_VECTORS = 512  # of one request with an Idempotency-Key: some 20 MB of the largest ones
_NUMBER = 4  # bytes


@dataclass(frozen=True, slots=True)
class Results:
    """A row of little-endian float32 for each input. `tokens`: of all inputs."""

    request_id: str
    created: int  # Unix seconds
    rows: list[bytes]
    tokens: int
    headers: dict[str, str]  # of the response: they identify the request

    def scores(self) -> list[float]:
        """The first number of each row."""
        return [float(struct.unpack_from("<f", row)[0]) for row in self.rows]


async def read(request: AuthRequest, job: Job, field: str) -> Results:
    """Submits the job, or attaches to the request's Idempotency-Key, and reads it to its end.

    The request's body is released. `field`: of the request, with the inputs. Cancelling this
    cancels a job without a key. Raises ApiError.
    """
    inputs = 0 if job.pooling is None else len(job.pooling.inputs)
    if job.task == "embed" and inputs > MAX_KEPT_VECTORS and key_of(request) is not None:
        message = f"{field}: at most {MAX_KEPT_VECTORS} with an {HEADER}; the vectors are stored"
        raise ApiError(400, message, field=field, code="not_with_idempotency_key")
    running = await start(request, job)
    waited = running.waiting
    rows: list[bytes] = []
    async with aclosing(running.source):
        async for frame in running.frames:
            match frame:
                case Vectors():
                    rows += frame.rows
                case Delta():  # of a stored answer
                    rows += as_rows(frame.text)
                case Waiting():
                    waited = frame.reason
                case Failed():
                    raise job_failure(frame, field)
                case Finished():
                    _check(running.request_id, rows, inputs)
                    return Results(
                        running.request_id,
                        running.created,
                        rows,
                        frame.prompt_tokens,
                        running.headers(waited),
                    )
    raise AssertionError("a stream ended without an end frame")


def _check(request_id: str, rows: list[bytes], inputs: int) -> None:
    """Raises ApiError 500 for a node that answered something else."""
    whole = all(row and len(row) % _NUMBER == 0 for row in rows)
    if len(rows) != inputs or not whole:
        message = f"a node sent {len(rows)} results for {inputs} inputs: update the nodes"
        raise ApiError(500, message, code="internal", request_id=request_id)
