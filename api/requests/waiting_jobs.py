"""This process's jobs that have not begun to run, by model, class and user."""

import sys
from collections import defaultdict
from dataclasses import dataclass

from api.requests.quota import Tally
from broker.wire import Job, JobClass

ID_BYTES = 36  # of a token id in a tuple
_NOBODY = Tally()  # to be read only
CLASSES: tuple[JobClass, ...] = ("interactive", "batch")


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """One job. `size`: see prompt_bytes."""

    request_id: str
    model: str
    job_class: JobClass
    user: str
    size: int


class WaitingJobs:
    """Counts them. Models without waiting jobs are forgotten: clients may invent names."""

    def __init__(self) -> None:
        self._jobs: dict[str, WaitingJob] = {}
        self._counts: defaultdict[tuple[str, JobClass], Tally] = defaultdict(Tally)
        self._bytes: dict[JobClass, Tally] = {name: Tally() for name in CLASSES}

    def add(self, job: Job) -> None:
        """Counts the job from now on."""
        entry = WaitingJob(job.request_id, job.model, job.job_class, job.user, prompt_bytes(job))
        self.remove(job.request_id)
        self._jobs[job.request_id] = entry
        self._counts[entry.model, entry.job_class].add(entry.user, 1)
        self._bytes[entry.job_class].add(entry.user, entry.size)

    def remove(self, request_id: str) -> None:
        """The job runs, has ended, or was refused. May be called again."""
        entry = self._jobs.pop(request_id, None)
        if entry is None:
            return
        counts = self._counts[entry.model, entry.job_class]
        counts.remove(entry.user, 1)
        if not counts.users:
            del self._counts[entry.model, entry.job_class]
        self._bytes[entry.job_class].remove(entry.user, entry.size)

    def __len__(self) -> int:
        """All jobs, of all models and classes."""
        return len(self._jobs)

    def of_model(self, model: str) -> int:
        """How many jobs wait for the model, in all classes."""
        waiting = 0
        for job_class in CLASSES:
            waiting += self.counts(model, job_class).total
        return waiting

    def counts(self, model: str, job_class: JobClass) -> Tally:
        """How many jobs each user has waiting. To be read only."""
        return self._counts.get((model, job_class), _NOBODY)

    def bytes(self, job_class: JobClass) -> Tally:
        """Bytes of the prompts that each user has waiting, for all models. To be read only."""
        return self._bytes[job_class]


def prompt_bytes(job: Job) -> int:
    """The memory that the job's prompt takes in this process."""
    if job.pooling is not None:
        return sum(map(sys.getsizeof, (*job.pooling.inputs, *job.pooling.queries)))
    size = sys.getsizeof(job.prompt or "") + ID_BYTES * len(job.prompt_ids)
    for turn in job.messages or ():
        size += sys.getsizeof(turn.content)
        for call in turn.tool_calls:
            size += sys.getsizeof(call.arguments)
    for tool in job.tools:
        size += sys.getsizeof(tool.parameters)
    return size
