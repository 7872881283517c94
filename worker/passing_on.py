"""A job as it is sent on to another node: with what is left of its time, and the nodes that it has passed."""

import msgspec

from broker.deadline import with_time_left
from broker.wire import Job

TRAIL_NODES = 64  # remembered, the latest: a job may be given back and forwarded again and again


def passed_by(job: Job, node: str, expires: float | None) -> Job:
    """The job as `node` forwards it, or puts it among the dead. `expires`: on time.monotonic()."""
    trail = (*job.trail, node)[-TRAIL_NODES:]
    return with_time_left(msgspec.structs.replace(job, trail=trail), expires)
