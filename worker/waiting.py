"""The jobs that wait at one node: their order, and what their readers hear about it.

Whoever waits is told the place in the line and the estimated time until the start: soon after coming, and again when
that has changed, the less often the longer it takes.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from broker.bounds import LONGEST_SECONDS
from broker.session import Delivery
from broker.wire import NO_RUN, Job, Waiting
from topology.cap import Cap
from topology.dispatch import Dispatcher
from topology.fair_queue import Entry, FairQueue, Position
from topology.wait_estimator import Accuracy, WaitEstimator

SOON = 0.05  # seconds until a job that came and could not go is told why
AGAIN = 1.0  # seconds, the least between two tellings of one job
AGAIN_SHARE = 0.1  # of the estimated wait, if that is longer
SLACK = 0.2  # of the wait, by which an estimate may be off without being told anew
JOBS_A_SECOND = 5_000  # looked at when telling: a long line is told less often


@dataclass(slots=True, eq=False)
class HeldJob:
    """A job in this node's hands, with the delivery that must be settled in the end."""

    job: Job
    delivery: Delivery
    expires: float | None = None  # time.monotonic() until which the answer is wanted
    entry: Entry["HeldJob"] | None = None  # the newest
    since: float = 0.0  # when it came into the line
    told: tuple[str, int] | None = (
        None  # the reason for waiting and the place that its reader knows
    )
    tell_at: float = 0.0  # not before is it told another place or time
    promised: float | None = None  # when it was told to start
    estimate: tuple[float, float] | None = None  # the first one: when, and how many seconds


class WaitingJobs:
    """See the module. `cap`: how many jobs of a user are let through to the nodes below. `send(reply queue, frame)`
    tells a reader.
    """

    def __init__(
        self, name: str, dispatcher: Dispatcher, cap: Cap, send: Callable[[str, Waiting], None]
    ) -> None:
        self.accuracy = Accuracy()
        self.users: Counter[str] = Counter()  # whose jobs wait here
        self._name = name
        self._dispatcher = dispatcher
        self._cap = cap
        self._send = send
        self._line: FairQueue[HeldJob] = FairQueue()
        self._estimator = WaitEstimator()
        self._reason = ""
        self._by_request: defaultdict[str, list[HeldJob]] = defaultdict(list)
        self._teller: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[HeldJob]:
        """In order."""
        return (entry.item for entry in self._line)

    def of(self, request_id: str) -> list[HeldJob]:
        """The copies of that job that wait here."""
        return list(self._by_request.get(request_id, ()))

    def older_than(self, seconds: float) -> list[HeldJob]:
        """Those that have waited longer, in order."""
        latest = time.monotonic() - seconds
        return [held for held in self if held.since < latest]

    # ---- coming and going

    def add(self, held: HeldJob, *, first: bool) -> None:
        """A job comes; `first`: it has been on its way already."""
        job = held.job
        self._cap.job_arrived(job.user, time.monotonic())
        held.entry = self._line.add(
            held,
            user=job.user,
            job_class=job.job_class,
            work=job.work,
            share=job.share,
            expected=job.expected,
            first=first,
        )
        self._note(held)

    def put_back(self, held: HeldJob) -> None:
        """One that was taken could not go after all; it comes first."""
        if held.entry is None:
            raise ValueError("this job was never in the line")
        held.entry = self._line.put_back(held.entry)
        self._note(held)

    def take(self) -> HeldJob | None:
        """The next one, which leaves the line; None if none may go, because their users have enough running."""
        most = self._most()
        entry = self._line.take(
            lambda user: most is None or self._dispatcher.jobs_below(user) < most
        )
        if entry is None:
            return None
        self._forget(entry.item)
        return entry.item

    def remove(self, held: HeldJob) -> None:
        """One leaves the line, unserved."""
        if held.entry is not None and self._line.remove(held.entry):
            self._forget(held)

    def clear(self) -> None:
        """Everything is gone; nobody is told."""
        self._line = FairQueue()
        self._by_request.clear()
        self.users.clear()
        if self._teller is not None:
            self._teller.cancel()
            self._teller = None

    def went(self, held: HeldJob) -> None:
        """One that was taken runs, or was handed on: it waited until now."""
        self._estimator.started(time.monotonic(), held.job.expected or held.job.work)
        if held.estimate is not None:
            at, seconds = held.estimate
            self.accuracy.add(seconds, time.monotonic() - at)
            held.estimate = None

    def _note(self, held: HeldJob) -> None:
        held.since = time.monotonic()
        self.users[held.job.user] += 1
        self._by_request[held.job.request_id].append(held)

    def _forget(self, held: HeldJob) -> None:
        self.users[held.job.user] -= 1
        if not self.users[held.job.user]:
            del self.users[held.job.user]
        copies = self._by_request[held.job.request_id]
        copies.remove(held)
        if not copies:
            del self._by_request[held.job.request_id]

    def _most(self) -> int | None:
        return self._cap.limit(self._dispatcher.subtree_slots(), time.monotonic())

    # ---- telling

    def observe(self) -> None:
        """The figures have changed: what estimates are made of."""
        dispatcher = self._dispatcher
        busy = dispatcher.subtree_slots() - dispatcher.subtree_free()
        self._estimator.observe(time.monotonic(), busy, dispatcher.subtree_finished())

    def stay(self, reason: str) -> None:
        """Nobody can go now, for this reason: those who wait are told."""
        self._reason = reason
        self._tell_within(SOON)

    def _tell_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + max(seconds, len(self) / JOBS_A_SECOND)
        if self._teller is None or self._teller.when() > at:
            if self._teller is not None:
                self._teller.cancel()
            self._teller = loop.call_at(at, self._tell)

    def _tell(self) -> None:
        self._teller = None
        now = time.monotonic()
        below, most = self._dispatcher.users_below(), self._most()
        self.observe()
        forecast = self._estimator.forecast(now, self._dispatcher.subtree_slots())
        for place in self._line.positions():
            held = place.entry.item
            running = below[held.job.user]
            cap = most if most is not None and running >= most else None
            reason, position = self._why(cap), place.before + 1
            seconds = None if forecast is None else forecast.next_start(place.entry.expected)
            if seconds is not None and most is not None and running + place.own_before >= most:
                seconds = max(seconds, self._own_seconds(place, most))
            told = held.told or ("", 0)
            news = position != told[1] or _is_off(held.promised, seconds, now)
            if reason != told[0] or (news and now >= held.tell_at):
                held.told = reason, position
                self._tell_one(held, seconds, now)
        if len(self):
            self._tell_within(AGAIN)

    def _tell_one(self, held: HeldJob, seconds: float | None, now: float) -> None:
        held.tell_at = now + max(AGAIN, AGAIN_SHARE * (seconds or 0.0))
        held.promised = None if seconds is None else now + seconds
        if held.estimate is None and seconds is not None:
            held.estimate = now, seconds
        job = held.job
        reason, position = held.told or ("", None)
        frame = Waiting(
            request_id=job.request_id,
            attempt=job.attempt,
            seq=NO_RUN,
            node=self._name,
            reason=reason,
            position=position,
            seconds=None if seconds is None else round(min(seconds, LONGEST_SECONDS), 1),
        )
        self._send(job.reply_to, frame)

    def _why(self, cap: int | None) -> str:
        return (
            self._reason
            if cap is None
            else f"{cap} of your jobs are running, and no more may at once"
        )

    def _own_seconds(self, place: Position[HeldJob], cap: int) -> float:
        """A user's own jobs, of which only so many may run, can be what takes longer than the line."""
        ahead = self._estimator.duration(place.own_expected_before) if place.own_before else 0.0
        return (ahead + (self._estimator.job_seconds or 0.0)) / cap


def _is_off(promised: float | None, seconds: float | None, now: float) -> bool:
    """Whether what was promised is not what is expected now, by a second and a fifth of the wait at least."""
    if promised is None or seconds is None:
        return promised is not seconds
    return abs(now + seconds - promised) > max(AGAIN, SLACK * seconds)
