"""A job's deadline: on the wire it is time left, in a process a moment of that process's own monotonic clock.

Machines' clocks differ and jump, so no moment of one is compared with a clock of another. Time in a queue that nobody
reads is not counted here: the API ends the answer by its own clock, and cancels whatever still comes of the job.
"""

import time

import msgspec

from broker.wire import Job


def expiry(job: Job) -> float | None:
    """The moment (time.monotonic()) until which the answer to a job that has just arrived is wanted; None: no limit."""
    if job.seconds_left is not None:
        return time.monotonic() + job.seconds_left
    if (
        job.deadline is not None
    ):  # from an API process of the former version: trusts that clocks agree
        return time.monotonic() + job.deadline - time.time()
    return None


def with_time_left(job: Job, expires: float | None) -> Job:
    """The job as it is sent on: with what is left of its time."""
    left = None if expires is None else max(0.0, expires - time.monotonic())
    return msgspec.structs.replace(job, seconds_left=left, deadline=None)


def has_passed(expires: float | None) -> bool:
    """True if that moment is over."""
    return expires is not None and time.monotonic() >= expires
