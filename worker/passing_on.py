"""A job in this node's hands as it is sent on: whole, with what is left of its time, and the nodes it has passed."""

import msgspec

from broker.deadline import with_time_left
from broker.wire import Job
from worker.held_body import with_content
from worker.waiting import HeldJob

TRAIL_NODES = 64  # remembered, the latest: a job may be given back and forwarded again and again


def given_back(held: HeldJob) -> Job:
    """As the parent gets it again."""
    return with_time_left(with_content(held.job, held.delivery), held.expires)


def passed_by(held: HeldJob, node: str) -> Job:
    """As `node` forwards it, or puts it among the dead."""
    job = given_back(held)
    return msgspec.structs.replace(job, trail=(*job.trail, node)[-TRAIL_NODES:])
