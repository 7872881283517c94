"""What one API process counts during a drill: pure, from the events of its own streams.

A job is affected if its newest run was in the killed process when that died. Frames which that
process had sent before may come a moment later, and a run that they end was not affected.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from broker.wire import NO_RUN, Failed, Finished

LATE_SECONDS = 0.5  # a Start of the killed process may come so long after the kill; another
# process of that name takes longer to start


class Fate(Enum):
    """Where a job is. All but RUNS are of affected jobs."""

    RUNS = "runs"  # in the process that is to be killed, or was: nothing else is known yet
    CUT = "cut"  # another run of it was granted, and has said nothing yet
    MOVED = "moved"
    RETURNED = "returned"
    LOST = "lost"
    LEFT = "left"


@dataclass(slots=True)
class _Job:
    """`listed`: the node has named it, but its Start has not come; `node`: of the newest run."""

    fate: Fate = Fate.RUNS
    listed: bool = False
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """See DrillCounts, whose fields these are."""

    affected: int
    moved: int
    returned: int
    lost: int
    left: int
    open: int
    waiting: int
    waiting_lost: int
    slowest: float | None


class DrillTally:
    """The jobs of one drill that this process reads. Times are on its monotonic clock."""

    def __init__(self, number: str, node: str) -> None:
        self.number = number
        self.node = node
        self._killed: float | None = None
        self._jobs: dict[str, _Job] = {}
        self._waiting: set[str] = set()
        self._waiting_lost = 0
        self._slowest: float | None = None

    @property
    def killed(self) -> bool:
        """True from the kill on."""
        return self._killed is not None

    def kill(self, now: float, running: Collection[str], waiting: Collection[str]) -> None:
        """The node dies now. Ids that it named and whose runs have not begun for this process."""
        self._killed = now
        for request_id in running:
            self._jobs.setdefault(request_id, _Job(listed=True))
        self._waiting.update(waiting)

    def on_run(self, request_id: str, node: str, now: float) -> None:
        """A run of the job begins at that node."""
        job = self._jobs.get(request_id)
        if job is not None and job.fate is Fate.CUT:
            job.node = node
        elif node == self.node and not self._is_late(now):
            self._jobs[request_id] = _Job()
        elif job is not None and job.fate is Fate.RUNS:
            if self.killed and not job.listed:  # it was published again, without a question
                job.fate, job.node = Fate.CUT, node
            else:
                del self._jobs[request_id]

    def on_interrupted(self, request_id: str) -> None:
        """The newest run ended by itself before the kill, to go on elsewhere."""
        self._drop_running(request_id)

    def on_resume(self, request_id: str, *, died: bool) -> None:
        """Another node asks where to continue. `died`: the process of the newest run has ended."""
        job = self._jobs.get(request_id)
        if job is not None and job.fate is Fate.RUNS and self.killed and (died or job.listed):
            job.fate = Fate.CUT
        elif job is not None and job.fate is Fate.CUT:
            job.node = ""
        else:
            self._drop_running(request_id)

    def on_text(self, request_id: str, now: float) -> None:
        """The newest run made a token."""
        job = self._jobs.get(request_id)
        if job is not None and job.fate is Fate.CUT and job.node:
            self._recover(job, now)

    def on_closed(self, request_id: str, end: Finished | Failed | None, now: float) -> None:
        """The job has ended; None: its reader has left."""
        if request_id in self._waiting and isinstance(end, Failed):
            self._waiting_lost += 1
        job = self._jobs.get(request_id)
        if job is None or job.fate not in (Fate.RUNS, Fate.CUT):
            return
        was_cut = job.fate is Fate.CUT
        if not self.killed or (not was_cut and end is not None and end.seq != NO_RUN):
            del self._jobs[request_id]  # the run said so itself, before it could be killed
        elif isinstance(end, Failed):
            job.fate = Fate.LOST
        elif end is None or end.reason == "cancelled":
            job.fate = Fate.LEFT
        else:
            self._recover(job, now)

    def counts(self) -> Counts:
        """So far. Before the kill nothing is affected."""
        fates = [job.fate for job in self._jobs.values()]
        if not self.killed:
            fates = []
        return Counts(
            affected=len(fates),
            moved=fates.count(Fate.MOVED),
            returned=fates.count(Fate.RETURNED),
            lost=fates.count(Fate.LOST),
            left=fates.count(Fate.LEFT),
            open=fates.count(Fate.RUNS) + fates.count(Fate.CUT),
            waiting=len(self._waiting),
            waiting_lost=self._waiting_lost,
            slowest=self._slowest,
        )

    def _is_late(self, now: float) -> bool:
        return self._killed is not None and now - self._killed > LATE_SECONDS

    def _drop_running(self, request_id: str) -> None:
        job = self._jobs.get(request_id)
        if job is not None and job.fate is Fate.RUNS:
            del self._jobs[request_id]

    def _recover(self, job: _Job, now: float) -> None:
        job.fate = Fate.MOVED
        if job.node == self.node:
            job.fate = Fate.RETURNED
        seconds = now - (self._killed or now)
        self._slowest = max(self._slowest or 0.0, seconds)
