"""Where a request's jobs come from, if not from a client's connection.

A batch, or a stored job, calls the endpoint that its client names (internal.py). What it must say
about the jobs that the endpoint makes, and learn of them, travels beside the call.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import msgspec

from broker.wire import Job, JobClass


@dataclass(slots=True)
class Origin:
    """Of the jobs of one call. `request_ids`: those that were submitted, in order."""

    job_class: JobClass | None = None  # None: as the request's body says
    request_ids: dict[str, None] = field(default_factory=dict)


current: ContextVar[Origin | None] = ContextVar("origin", default=None)


def adopt(jobs: Sequence[Job]) -> list[Job]:
    """The jobs as the current call's origin wants them; unchanged for a client's request."""
    origin = current.get()
    if origin is None:
        return list(jobs)
    origin.request_ids.update(dict.fromkeys(job.request_id for job in jobs))
    if origin.job_class is None:
        return list(jobs)
    return [msgspec.structs.replace(job, job_class=origin.job_class) for job in jobs]
