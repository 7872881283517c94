"""The jobs that run at one node, and whose they are."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from worker.pending_job import PendingJob
from worker.run import JobRun


@dataclass(slots=True)
class Running:
    """A job that runs."""

    pending: PendingJob
    run: JobRun
    task: asyncio.Task[None]


class RunningJobs:
    """Iterates over what runs, the oldest first. `users`: how many jobs of each user run."""

    def __init__(self) -> None:
        self.users: Counter[str] = Counter()
        self._runs: dict[int, Running] = {}  # by the number of the run

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Running]:
        return iter(list(self._runs.values()))

    def add(self, running: Running) -> None:
        self.users[running.pending.job.user] += 1
        self._runs[running.run.number] = running

    def remove(self, run: JobRun) -> None:
        """Its task has ended. Does nothing the second time."""
        running = self._runs.pop(run.number, None)
        if running is None:
            return
        user = running.pending.job.user
        self.users[user] -= 1
        if not self.users[user]:
            del self.users[user]

    def of_request(self, request_id: str) -> list[JobRun]:
        """The runs of that request; a job that was delivered twice has two."""
        runs = [running.run for running in self]
        return [run for run in runs if run.job.request_id == request_id]

    def of_reader(self, queue: str) -> list[JobRun]:
        """The runs whose answers go to that reply queue."""
        return [running.run for running in self if running.pending.job.reply_to == queue]

    def tokens(self) -> int:
        """Tokens generated so far."""
        return sum(running.run.tokens for running in self)
