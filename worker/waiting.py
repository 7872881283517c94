"""The jobs that wait at one node: their order, and what their readers are told about it.

The reader of a waiting job gets its position in the queue and the estimated time to its start: soon
after it arrives, and again when that has changed, less often the longer the wait.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from broker.bounds import LONGEST_SECONDS
from broker.wire import NO_RUN, Job, JobClass, Waiting
from topology.cap import Cap
from topology.dispatch import Dispatcher, HoldCode
from topology.fair_queue import FairQueue, Position
from topology.wait_estimator import Accuracy, Forecast, WaitEstimator
from worker.pending_job import PendingJob

FIRST_SECONDS = 0.05  # until the reader of a job that cannot go is told why
REPEAT_SECONDS = 1.0  # between two updates of one job, at least
REPEAT_SHARE = 0.1  # of the estimated wait, if that is longer
TOLERANCE = 0.2  # of the wait, by which an estimate may change without an update
JOBS_A_SECOND = 5_000  # whose positions are computed: a long queue is updated less often


@dataclass(frozen=True, slots=True)
class Why:
    """Why a job waits. `slots`: those that are taken."""

    reason: str
    code: HoldCode | Literal["user_limit"]
    slots: int


@dataclass(slots=True)
class Outlook:
    """Where a job stands, why it waits, and the seconds until it starts (None: nobody knows)."""

    position: Position[PendingJob]
    why: Why
    seconds: float | None


class WaitingJobs:
    """See the module.

    `cap`: how many jobs of a user are let through to the nodes below. `send(job, frame)` sends a
    frame to the job's reader.
    """

    def __init__(
        self, name: str, dispatcher: Dispatcher, cap: Cap, send: Callable[[Job, Waiting], None]
    ) -> None:
        self.accuracy = Accuracy()
        self.users: Counter[str] = Counter()  # waiting jobs by user
        self._by_plan: Counter[tuple[str, JobClass]] = Counter()  # those that a plan limits
        self._name = name
        self._dispatcher = dispatcher
        self._cap = cap
        self._send = send
        self._queue: FairQueue[PendingJob] = FairQueue()
        self._estimator = WaitEstimator()
        self._hold_reason = ""
        self._hold_code: HoldCode = "busy"
        self._by_request: defaultdict[str, list[PendingJob]] = defaultdict(list)
        self._next_update: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return self._queue.length

    def __iter__(self) -> Iterator[PendingJob]:
        """In the order in which they would go."""
        return (entry.item for entry in self._queue)

    def copies_of(self, request_id: str) -> list[PendingJob]:
        """The copies of that job, which may have been delivered twice."""
        return list(self._by_request.get(request_id, ()))

    def older_than(self, seconds: float) -> list[PendingJob]:
        """Jobs that have waited longer, in order."""
        latest = time.monotonic() - seconds
        return [pending for pending in self if pending.queued_at < latest]

    def oldest_wait(self) -> float:
        """Seconds since the first of the waiting jobs arrived here; 0 if none waits."""
        if not self._by_request:
            return 0.0
        arrivals = [copies[0].arrived_at for copies in self._by_request.values()]
        return max(0.0, time.monotonic() - min(arrivals))

    # ---- the queue

    def add(self, pending: PendingJob, *, first: bool) -> None:
        """Adds a job; `first`: it goes before those that have not begun."""
        job = pending.job
        if not self._cap.unlimited:
            self._cap.job_arrived(job.user, pending.arrived_at)
        if job.most_running is not None or self._cap.any_plan:
            self._cap.plan_says(job.user, job.most_running)
        pending.entry = self._queue.add(
            pending,
            user=job.user,
            job_class=job.job_class,
            work=job.work,
            share=job.share,
            expected=job.expected,
            first=first,
        )
        self._index(pending, pending.arrived_at)

    def put_back(self, pending: PendingJob) -> None:
        """Returns a job that was taken but could not go; it comes first."""
        if pending.entry is None:
            raise ValueError("this job was never in the queue")
        pending.entry = self._queue.put_back(pending.entry)
        self._index(pending, time.monotonic())

    def take(self) -> PendingJob | None:
        """Removes and returns the next job; None if the users of all have reached their cap."""
        limit = self._user_limit()
        if limit is None and not self._cap.any_plan:
            entry = self._queue.take()
        else:
            entry = self._queue.take(lambda user: self._may_go(user, limit))
        if entry is None:
            return None
        self._unindex(entry.item)
        return entry.item

    def _may_go(self, user: str, limit: int | None) -> bool:
        most = self._cap.limit_of(user, limit)
        return most is None or self._dispatcher.jobs_below(user) < most

    def remove(self, pending: PendingJob) -> None:
        """Removes a job that does not go."""
        if pending.entry is not None and self._queue.remove(pending.entry):
            self._unindex(pending)

    def beyond_plan(self, pending: PendingJob) -> str | None:
        """Why a new job that still waits may not, by its user's plan; None if it may."""
        job = pending.job
        if job.most_waiting is None or not self._cap.with_plans:
            return None
        if job.restarted or job.attempt > 1 or pending not in self.copies_of(job.request_id):
            return None
        if self._by_plan[job.user, job.job_class] <= job.most_waiting:
            return None
        return f"{job.most_waiting} of your jobs wait, and your plan allows no more: try again soon"

    def move_up(self, pending: PendingJob) -> bool:
        """Puts a job before the others of its class; False if it does not wait here."""
        if pending.entry is None or not self._queue.to_front(pending.entry):
            return False
        self._order_changed(pending)
        return True

    def change_class(self, pending: PendingJob, job_class: JobClass) -> bool:
        """Has a job served as one of that class; False if it does not wait here."""
        if pending.entry is None:
            return False
        entry = self._queue.change_class(pending.entry, job_class)
        if entry is None:
            return False
        pending.entry = entry
        limited = pending.job.most_waiting is not None
        if limited:
            self._count(pending, -1)
        pending.job = msgspec.structs.replace(pending.job, job_class=job_class)
        if limited:
            self._count(pending, 1)
        self._order_changed(pending)
        return True

    def batch_count(self) -> int:
        """How many of the jobs are of class batch."""
        return self._queue.lengths()["batch"]

    def _order_changed(self, pending: PendingJob) -> None:
        """An operator moved this job: its reader is told soon, the others in their turn."""
        pending.notify_after = 0.0
        self._schedule_update(FIRST_SECONDS)

    def clear(self) -> None:
        """Forgets all jobs and tells nobody."""
        self._queue = FairQueue()
        self._by_request.clear()
        self.users.clear()
        self._by_plan.clear()
        if self._next_update is not None:
            self._next_update.cancel()
            self._next_update = None

    def departed(self, pending: PendingJob) -> None:
        """A job that was taken is about to run or to be forwarded: its wait is over."""
        self._estimator.started(time.monotonic(), pending.job.expected or pending.job.work)
        if pending.first_estimate is not None:
            at, seconds = pending.first_estimate
            self.accuracy.add(seconds, time.monotonic() - at)
            pending.first_estimate = None

    def _index(self, pending: PendingJob, now: float) -> None:
        pending.queued_at = now
        self.users[pending.job.user] += 1
        if pending.job.most_waiting is not None:
            self._count(pending, 1)
        self._by_request[pending.job.request_id].append(pending)

    def _unindex(self, pending: PendingJob) -> None:
        self.users[pending.job.user] -= 1
        if not self.users[pending.job.user]:
            del self.users[pending.job.user]
        if pending.job.most_waiting is not None:
            self._count(pending, -1)
        copies = self._by_request[pending.job.request_id]
        copies.remove(pending)
        if not copies:
            del self._by_request[pending.job.request_id]

    def _count(self, pending: PendingJob, change: int) -> None:
        owner = pending.job.user, pending.job.job_class
        self._by_plan[owner] += change
        if not self._by_plan[owner]:
            del self._by_plan[owner]

    def _user_limit(self) -> int | None:
        if self._cap.unlimited:
            return None
        return self._cap.limit(self._dispatcher.subtree_slots(), time.monotonic())

    # ---- what readers are told

    def observe(self) -> None:
        """The counters have changed, from which waits are estimated."""
        dispatcher = self._dispatcher
        busy = dispatcher.subtree_slots() - dispatcher.subtree_free()
        self._estimator.observe(time.monotonic(), busy, dispatcher.subtree_finished())

    def hold(self, reason: str, code: HoldCode) -> None:
        """No job can go now, for this reason: their readers are told soon."""
        self._hold_reason, self._hold_code = reason, code
        self._schedule_update(FIRST_SECONDS)

    def _schedule_update(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + max(seconds, len(self) / JOBS_A_SECOND)
        if self._next_update is not None:
            if self._next_update.when() <= at:
                return
            self._next_update.cancel()
        self._next_update = loop.call_at(at, self._update_readers)

    def _update_readers(self) -> None:
        self._next_update = None
        now = time.monotonic()
        for outlook in self.outlooks():
            pending, place = outlook.position.entry.item, outlook.position.before + 1
            if _is_news(pending, outlook.why.reason, place, outlook.seconds, now):
                pending.notified = outlook.why.reason, place
                self._notify(pending, outlook.why, outlook.seconds, now)
        if len(self):
            self._schedule_update(REPEAT_SECONDS)

    def outlooks(self) -> Iterator[Outlook]:
        """Every job's outlook, in order. Each costs some microseconds."""
        now = time.monotonic()
        below = self._dispatcher.users_below()
        general = self._user_limit()
        self.observe()
        open_slots = self._dispatcher.open_slots()
        forecast = self._estimator.forecast(now, open_slots)
        for position in self._queue.positions():
            running = below[position.entry.user]
            limit = self._cap.limit_of(position.entry.user, general)
            why = Why(self._hold_reason, self._hold_code, open_slots)
            if limit is not None and running >= limit:
                reason = f"{limit} of your jobs are running, and no more may at once"
                why = Why(reason, "user_limit", limit)
            yield Outlook(position, why, self._estimate(position, forecast, running, limit))

    def _estimate(
        self,
        position: Position[PendingJob],
        forecast: Forecast | None,
        running: int,
        limit: int | None,
    ) -> float | None:
        """Seconds until the job starts; None while nothing is known.

        Under a per-user cap, the user's own earlier jobs may delay it more than the queue does.
        """
        if forecast is None:
            return None
        seconds = forecast.next_start(position.entry.expected)
        if limit is None or running + position.own_before < limit:
            return seconds
        own_seconds = self._estimator.job_seconds or 0.0
        if position.own_before:
            own_seconds += self._estimator.duration(position.own_expected_before)
        return max(seconds, own_seconds / limit)

    def _notify(self, pending: PendingJob, why: Why, seconds: float | None, now: float) -> None:
        pending.notify_after = now + max(REPEAT_SECONDS, REPEAT_SHARE * (seconds or 0.0))
        pending.promised_start = None
        shown_seconds = None
        if seconds is not None:
            pending.promised_start = now + seconds
            shown_seconds = round(min(seconds, LONGEST_SECONDS), 1)
            if pending.first_estimate is None:
                pending.first_estimate = now, seconds
        job = pending.job
        _, position = pending.notified or ("", None)
        frame = Waiting(
            request_id=job.request_id,
            attempt=job.attempt,
            seq=NO_RUN,
            node=self._name,
            reason=why.reason,
            code=why.code,
            slots=why.slots,
            position=position,
            seconds=shown_seconds,
        )
        self._send(job, frame)


def _is_news(
    pending: PendingJob, reason: str, position: int, seconds: float | None, now: float
) -> bool:
    """True if the reader is to be told: of a new reason at once, of other changes now and then."""
    known_reason, known_position = pending.notified or ("", 0)
    if reason != known_reason:
        return True
    changed = position != known_position or _is_off(pending.promised_start, seconds, now)
    return changed and now >= pending.notify_after


def _is_off(promised: float | None, seconds: float | None, now: float) -> bool:
    """True if the promised start differs from the estimate by more than the tolerance."""
    if promised is None or seconds is None:
        return promised is not seconds
    return abs(now + seconds - promised) > max(REPEAT_SECONDS, TOLERANCE * seconds)
