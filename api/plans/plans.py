"""What users' plans allow, as this process knows it, and what they have used.

Requests a minute and tokens a day are counted in the database, of which each process takes a small
part at a time: so that processes together never allow more than the plan, and few requests need a
query. Jobs that run and wait are counted by the root of their model, from limits in each job.
"""

import asyncio
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError
from msgspec.structs import replace

from api.accounts.models import User
from api.plans import refusals, store
from api.plans.limits import UNLIMITED, Kind, Meter, PlanLimits
from api.requests.accounting import UNKNOWN_ANSWER, prompt_tokens
from broker.announcements import Announcements
from broker.stream import Stream
from broker.wire import Finished, Job

SETTING = "plans"
REFRESH_SECONDS = 10.0  # where a change was not announced
FLUSH_SECONDS = 1.0
REMEMBERED = 20_000  # meters
LOOKED_AT = 100  # of the oldest, for one that can be forgotten

MeterKey = tuple[int, Kind]

log = structlog.get_logger("canopy.api")


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose request is being answered, and by which plan."""

    user: int
    limits: PlanLimits


current: ContextVar[Subject | None] = ContextVar("subject", default=None)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens that a job is expected to use, taken from its user's allowance."""

    key: MeterKey
    tokens: int
    ends: float


class Plans:
    """See the module. `wall` gives Unix seconds, which all processes have in common."""

    def __init__(self, announcements: Announcements, wall: Callable[[], float] = time.time) -> None:
        self._announcements = announcements
        self._wall = wall
        self._plans: dict[int, PlanLimits] = {}
        self._default: int | None = None
        self._meters: OrderedDict[MeterKey, Meter] = OrderedDict()  # least recently used first
        self._asking: defaultdict[MeterKey, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._reserved: dict[str, Reservation] = {}  # by request id
        self._reservations: Counter[MeterKey] = Counter()
        self._stale = asyncio.Event()
        announcements.listen(SETTING, self._stale.set)

    def of(self, user: User) -> PlanLimits:
        """The limits of the user's plan, or of the default one."""
        key = user.plan_id if user.plan_id in self._plans else self._default
        return UNLIMITED if key is None else self._plans.get(key, UNLIMITED)

    def enter(self, user: User) -> None:
        """The current request is this user's."""
        current.set(Subject(user.pk, self.of(user)))

    async def reserve(self, jobs: Sequence[Job]) -> None:
        """Counts one request with these jobs. Raises ApiError 429 if the plan does not allow it."""
        subject = current.get()
        if subject is None:
            return
        await self._take(subject, "requests", 1)
        try:
            for job in jobs:
                await self._reserve_tokens(subject, job)
        except BaseException:
            self.release(jobs)
            raise

    def release(self, jobs: Sequence[Job]) -> None:
        """The jobs were refused, for another reason."""
        for job in jobs:
            self._settle(job.request_id, 0)
        subject = current.get()
        meter = None if subject is None else self._meters.get((subject.user, "requests"))
        if meter is not None:
            meter.give_back(1)

    def closed(self, stream: Stream) -> None:
        """The stream's job has ended, or its reader left."""
        if stream.request_id in self._reserved:
            self._settle(stream.request_id, tokens_of(stream))

    def meters(self, subject: Subject) -> list[tuple[Kind, Meter]]:
        """What is known of the user's allowances."""
        kinds: tuple[Kind, ...] = ("requests", "tokens")
        found = []
        for kind in kinds:
            meter = self._meters.get((subject.user, kind))
            if meter is not None and subject.limits.of(kind) is not None:
                found.append((kind, meter))
        return found

    def now(self) -> float:
        """Unix seconds."""
        return self._wall()

    async def changed(self) -> None:
        """Reads the plans again, and has the other processes do so."""
        await self._read()
        self._announcements.announce(SETTING)

    async def keep_fresh(self) -> None:
        """Reads the plans now and then, and when another process may have changed one."""
        while True:
            try:
                await self._read()
            except DatabaseError as error:  # not migrated yet, or away: /readyz says so
                log.warning("plans are read later", reason=str(error))
            try:
                async with asyncio.timeout(REFRESH_SECONDS):
                    await self._stale.wait()
            except TimeoutError:
                continue
            self._stale.clear()

    async def flush_repeatedly(self) -> None:
        """Has the database count what was used beyond what it granted. Never ends."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """See flush_repeatedly."""
        for key, meter in list(self._meters.items()):
            if not meter.owed():
                continue
            try:
                async with self._asking[key]:
                    await self._lease(key, meter, 0)
            except DatabaseError as error:  # fate: counted the next time
                log.warning("used tokens are counted later", reason=str(error))
                return

    async def _read(self) -> None:
        self._plans, self._default = await sync_to_async(store.stored_plans)()

    async def _reserve_tokens(self, subject: Subject, job: Job) -> None:
        if subject.limits.tokens_per_day is None:
            return
        most = job.sampling.max_tokens
        answer = UNKNOWN_ANSWER if most is None else min(most, UNKNOWN_ANSWER)
        tokens = min(int(prompt_tokens(job)) + answer, subject.limits.tokens_per_day)
        meter = await self._take(subject, "tokens", tokens)
        if meter is not None:
            key: MeterKey = (subject.user, "tokens")
            self._reserved[job.request_id] = Reservation(key, tokens, meter.ends)
            self._reservations[key] += 1

    def _settle(self, request_id: str, used: int) -> None:
        reserved = self._reserved.pop(request_id, None)
        if reserved is None:
            return
        self._reservations[reserved.key] -= 1
        if not self._reservations[reserved.key]:
            del self._reservations[reserved.key]
        meter = self._meters.get(reserved.key)
        if meter is None:
            return
        same = meter.ends == reserved.ends
        meter.give_back((reserved.tokens if same else 0) - used)

    async def _take(self, subject: Subject, kind: Kind, amount: int) -> Meter | None:
        """Raises ApiError 429."""
        limit = subject.limits.of(kind)
        if limit is None:
            return None
        key = (subject.user, kind)
        meter = self._meter(key, limit)
        if meter.take(amount, self._wall()):
            return meter
        async with self._asking[key]:
            now = self._wall()
            if meter.take(amount, now):
                return meter
            if not meter.is_exhausted(amount, now):
                await self._lease(key, meter, amount)
            if not meter.take(amount, self._wall()):
                raise refusals.used_up(kind, subject.limits, meter.seconds(self._wall()))
        return meter

    async def _lease(self, key: MeterKey, meter: Meter, amount: int) -> None:
        user, kind = key
        owed = meter.owed()
        lease = await store.lease(
            user,
            kind,
            meter.limit,
            owed=owed,
            needed=amount - max(0, meter.local) if amount else 0,
            wanted=meter.wanted(amount) if amount else 0,
            now=self._wall(),
        )
        meter.granted(lease, owed)

    def _meter(self, key: MeterKey, limit: int) -> Meter:
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = Meter(limit)
            if len(self._meters) > REMEMBERED:
                self._forget_one()
        else:
            self._meters.move_to_end(key)
        meter.use_limit(limit)
        return meter

    def _forget_one(self) -> None:
        """The least recently used meter of which the database knows all.

        None if many of the oldest ones are needed still: they are settled within moments.
        """
        for key, meter in islice(self._meters.items(), LOOKED_AT):
            if not meter.owed() and key not in self._reservations:
                del self._meters[key]
                self._asking.pop(key, None)
                return


def limits() -> PlanLimits:
    """The plan's limits for whoever sent the current request."""
    subject = current.get()
    return UNLIMITED if subject is None else subject.limits


def with_limits(job: Job) -> Job:
    """The job with what its root must know of its user's plan."""
    plan = limits()
    if plan is UNLIMITED:
        return job
    return replace(job, most_running=plan.jobs_running, most_waiting=plan.jobs_waiting)


def tokens_of(stream: Stream) -> int:
    """What a stream's job has used, prompt and answer; 0 if it never ran."""
    if not stream.started:
        return 0
    if isinstance(stream.end, Finished):
        return stream.end.prompt_tokens + stream.end.completion_tokens
    return int(prompt_tokens(stream.job)) + stream.tokens
