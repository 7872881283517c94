"""Runs a job that makes vectors or scores, and reads its rows."""

import struct
from contextlib import aclosing
from dataclasses import dataclass

from api.accounts.auth import AuthRequest
from api.context import app
from api.errors import ApiError
from api.requests.complete import release_body
from api.requests.errors import job_failure
from broker.wire import Failed, Finished, Job, Vectors, Waiting

_NUMBER = 4  # bytes


@dataclass(frozen=True, slots=True)
class Results:
    """A row of little-endian float32 for each input. `tokens`: of all inputs."""

    request_id: str
    created: int  # Unix seconds
    rows: list[bytes]
    tokens: int
    waited: str | None

    @property
    def headers(self) -> dict[str, str]:
        """The response headers that identify the request."""
        headers = {"X-Request-Id": self.request_id}
        if self.waited:
            one_line = " ".join(self.waited.split())
            headers["X-Canopy-Waited"] = one_line.encode("ascii", "replace").decode()
        return headers

    def scores(self) -> list[float]:
        """The first number of each row."""
        return [float(struct.unpack_from("<f", row)[0]) for row in self.rows]


async def read(request: AuthRequest, job: Job, field: str) -> Results:
    """Submits the job and reads it to its end; the request's body is released.

    `field`: of the request, with the inputs. Cancelling this cancels the job. Raises ApiError.
    """
    waited = app().catalog.nobody_serves(job.model)
    stream = await app().submitter.submit(job)
    release_body(request)
    rows: list[bytes] = []
    async with aclosing(stream):
        async for frame in stream:
            match frame:
                case Vectors():
                    rows += frame.rows
                case Waiting():
                    waited = frame.reason
                case Failed():
                    raise job_failure(frame, field)
                case Finished():
                    _check(job, rows)
                    created = int(job.created)
                    return Results(job.request_id, created, rows, frame.prompt_tokens, waited)
    raise AssertionError("a stream ended without an end frame")


def _check(job: Job, rows: list[bytes]) -> None:
    """Raises ApiError 500 for a node that answered something else."""
    inputs = () if job.pooling is None else job.pooling.inputs
    whole = all(row and len(row) % _NUMBER == 0 for row in rows)
    if len(rows) != len(inputs) or not whole:
        message = f"a node sent {len(rows)} results for {len(inputs)} inputs: update the nodes"
        raise ApiError(500, message, code="internal", request_id=job.request_id)
