"""A job's deadline: time left on the wire, a moment of the process's own monotonic clock inside it.

Machines' clocks differ and jump, so a moment of one is never compared with the clock of another.
Time in a queue that nobody reads is not counted here: the API ends the answer by its own clock, and
cancels the job if it still runs.
"""

import time

import msgspec

from broker.wire import Job


def expiry(job: Job) -> float | None:
    """The moment (time.monotonic()) at which a job that has just arrived expires; None: never."""
    if job.seconds_left is not None:
        return time.monotonic() + job.seconds_left
    if job.deadline is not None:  # from an API process of a former release: clocks must agree
        return time.monotonic() + job.deadline - time.time()
    return None


def time_left(expires: float | None) -> float | None:
    """Seconds until then; None: for ever."""
    if expires is None:
        return None
    return max(0.0, expires - time.monotonic())


def with_time_left(job: Job, expires: float | None) -> Job:
    """The job as it is sent on: with what is left of its time."""
    return msgspec.structs.replace(job, seconds_left=time_left(expires), deadline=None)


def has_passed(expires: float | None) -> bool:
    """True if the job has expired."""
    return expires is not None and time.monotonic() >= expires
