"""This process's jobs that have not ended, by model, class and user: for a model's limit a user."""

from collections import Counter
from collections.abc import Sequence

from api.errors import ApiError
from api.plans.limits import UNLIMITED, PlanLimits
from api.plans.refusals import too_many_jobs
from broker.wire import Job, JobClass

RETRY_AFTER = 5  # seconds that a refused client is asked to wait

Owner = tuple[str, JobClass, str]  # model, class, user


class OpenJobs:
    """Counts them, waiting or running. Batch jobs count apart, as in admission."""

    def __init__(self) -> None:
        self._owners: dict[str, Owner] = {}  # by request id
        self._counts: Counter[Owner] = Counter()

    def add(self, job: Job) -> None:
        """Counts the job from now on. May be called again."""
        if job.request_id not in self._owners:
            owner = (job.model, job.job_class, job.user)
            self._owners[job.request_id] = owner
            self._counts[owner] += 1

    def remove(self, request_id: str) -> None:
        """The job has ended, or was refused. May be called again."""
        owner = self._owners.pop(request_id, None)
        if owner is None:
            return
        self._counts[owner] -= 1
        if not self._counts[owner]:
            del self._counts[owner]

    def reserve(self, jobs: Sequence[Job], most: int | None, plan: PlanLimits = UNLIMITED) -> None:
        """Counts the jobs, all of one model, class and user, or none of them.

        Raises ApiError 400 if they alone are more than `most`, or 429 if they are with those that
        their user has already, or are more than the user's plan allows.
        """
        first = jobs[0]
        count = self._counts[first.model, first.job_class, first.user]
        if most is not None and len(jobs) > most:
            raise _never_allowed(first, most)
        if most is not None and count + len(jobs) > most:
            raise _not_now(first, count, most)
        if plan.jobs_open is not None and count + len(jobs) > plan.jobs_open:
            raise too_many_jobs(plan, count)
        for job in jobs:
            self.add(job)


def _never_allowed(job: Job, most: int) -> ApiError:
    return ApiError(
        400,
        f"n: at most {most}, the limit of requests of one user to {job.model!r} at a time",
        field="n",
        code="too_large",
        params={"bound": most},
    )


def _not_now(job: Job, count: int, most: int) -> ApiError:
    kind = "batch requests" if job.job_class == "batch" else "requests"
    return ApiError(
        429,
        f"you have {count} {kind} to {job.model!r} under way, and the limit of this model is "
        f"{most} at a time: try again when one has ended",
        code="user_limit",
        params={"model": job.model, "most": most},
        headers={"Retry-After": str(RETRY_AFTER)},
    )
