"""One answer read to its end."""

from contextlib import aclosing
from dataclasses import dataclass

from api import submission
from api.catalog import nobody_serves
from broker.wire import Delta, Failed, Finished, Job, Waiting


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. `waited`: why it did not start at once, if it had to wait."""

    text: str
    end: Finished
    waited: str | None


async def complete(job: Job, prompt_field: str) -> Answer:
    """Submits the job and reads its answer; being cancelled cancels the job.

    Raises ApiError if the job is refused or fails; `prompt_field` is blamed for a prompt that is too long.
    """
    waited = nobody_serves(job.model)
    pieces: list[str] = []
    async with aclosing(await submission.submit(job)) as stream:
        async for frame in stream:
            match frame:
                case Delta():
                    pieces.append(frame.text)
                case Waiting():
                    waited = frame.reason
                case Failed():
                    raise submission.failure(frame, prompt_field)
                case Finished():
                    return Answer("".join(pieces), frame, waited)
    raise AssertionError("a stream ended without an end frame")


def headers(request_id: str, waited: str | None = None) -> dict[str, str]:
    """The response headers that identify a request."""
    found = {"X-Request-Id": request_id}
    if waited:
        found["X-Canopy-Waited"] = " ".join(waited.split()).encode("ascii", "replace").decode()
    return found
