"""How many jobs of a model wait, and the refusal of one that is too many (quota.py has the rule).

Two figures are looked at, and the larger one counts. What this process has submitted and has not seen begin is exact at
any moment, also within a burst. What waits in the nodes' queues and hands, whoever submitted it, is measured now and
then while requests come in. Jobs that are on their way to a free slot do not wait.

Interactive and batch jobs are counted apart, and half as many batch jobs may wait. Of other processes' jobs the class
is not known, so they count as both.
"""

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from api import broker
from api.catalog import offered
from api.errors import ApiError
from api.requests.quota import Usage, Verdict, decide
from api.requests.waiting_jobs import prompt_bytes, waiting_jobs
from api.settings import ENV, MAX_BODY
from broker.client import Unavailable
from broker.wire import Job, JobClass, NodeState
from topology import names

log = structlog.get_logger("canopy.api")

EVERY = 0.5  # seconds between two measurements
STALE = 2.0  # seconds after which a measurement is not believed any more; the next request then waits for a new one:
PATIENCE = 0.5  # so long at most
MEASURE_SECONDS = 2.0  # a broker that takes longer to answer is not waited for
RATE_WINDOW = 30.0  # seconds over which finished jobs are counted
RETRY_AFTER = 5  # seconds, where nothing is known
LONGEST_RETRY_AFTER = 3600  # seconds
MOST_HELD = 10_000  # jobs that a node takes out of its queue (Dispatcher.window)
BATCH_PART = 2  # one in so many of the places is open to batch jobs
LARGEST_PROMPT = (
    4 * MAX_BODY
)  # bytes of memory: one character beyond U+FFFF makes all of a text take four each
LEAST_PART = (
    100  # beyond the limit, everybody may have one in so many of its places, whoever else waits
)


@dataclass(slots=True)
class Figures:
    """One model as it was measured."""

    waiting: int  # ready in the queues of its nodes, or held by them
    free: int  # slots
    own: int  # of this process's jobs, those that had not begun
    admitted: int = 0  # jobs since


@dataclass(frozen=True, slots=True)
class Finished:
    """How many jobs each node had finished since it started."""

    at: float  # time.monotonic()
    by_node: Mapping[str, int]


def waiting(own: int, then: Figures | None) -> int:
    """Jobs that wait now: `own` of this process have not begun, and `then` is what was measured last."""
    if then is None:
        return own
    begun = max(0, then.own + then.admitted - own)  # of this process's jobs, since the measurement
    free = max(0, then.free - begun)
    return max(0, max(own, then.waiting + own - then.own) - free)


def retry_after(places: int, samples: deque[Finished]) -> int:
    """Seconds until `places` waiting jobs will have begun, as fast as jobs finished lately."""
    if not samples or (elapsed := samples[-1].at - samples[0].at) < STALE:
        return RETRY_AFTER
    before, after = samples[0].by_node, samples[-1].by_node
    finished = sum(max(0, count - before[node]) for node, count in after.items() if node in before)
    if not finished:
        return RETRY_AFTER
    return min(LONGEST_RETRY_AFTER, max(1, math.ceil(places * elapsed / finished)))


def queues(states: Mapping[str, NodeState]) -> dict[str, set[str]]:
    """The queues in which jobs may wait, by model. A root that is away keeps its queue, under the name that it had."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for state in states.values():
        found[state.model].add(names.node(state.name))
    rooted = {state.model for state in states.values() if state.engine == "none"}
    for model in set(ENV.models) - rooted:
        found[model].add(names.node(names.root_name(model, ENV.models[0])))
    return dict(found)


def limit_of(most: int, job_class: JobClass) -> int:
    """How much of what may wait, in jobs or bytes, is open to a class."""
    return max(1, most // BATCH_PART) if job_class == "batch" else most


class Backlog:
    """What waits, by model."""

    def __init__(self) -> None:
        self._figures: dict[str, Figures] = {}
        self._finished: deque[Finished] = deque()
        self._measured_at = -math.inf
        self._measuring: asyncio.Task[None] | None = None

    async def admit(self, job: Job) -> None:
        """Returns if the job may wait. Raises ApiError 429.

        Nothing may be awaited between this and the job's submission, or a burst gets past the limit.
        """
        await self._refresh()
        usage = self._usage(job)
        if (
            usage.total < limit_of(ENV.backlog, job.job_class) <= usage.here
            and self._measuring is not None
        ):
            # Only for the slots that were free then: is it still so?
            await asyncio.wait({self._measuring}, timeout=PATIENCE)
        self._admit_bytes(job)
        self._admit_one(job)
        if (figures := self._figures.get(job.model)) is not None:
            figures.admitted += 1

    def _admit_one(self, job: Job) -> None:
        limit = limit_of(ENV.backlog, job.job_class)
        least = max(1, limit // LEAST_PART)
        usage = self._usage(job)
        verdict = decide(usage, 1, limit, least)
        if verdict is Verdict.ADMITTED:
            return
        places = usage.total + 1 - limit  # until anybody's job is taken
        if verdict is Verdict.USER_FULL:
            own_places = usage.mine + 1 - usage.fair_share(limit, least)
            places = min(places, own_places * (usage.others + 1))  # users take turns
        raise refusal(job, verdict, usage, retry_after(places, self._finished))

    def _admit_bytes(self, job: Job) -> None:
        """By this process's own jobs: it is its memory that they take."""
        limit = limit_of(ENV.backlog_bytes, job.job_class)
        usage = waiting_jobs.bytes(job.job_class).usage(job.user)
        wanted = prompt_bytes(job)
        verdict = decide(usage, wanted, limit, max(limit // LEAST_PART, LARGEST_PROMPT))
        if verdict is Verdict.ADMITTED:
            return
        excess = usage.total + wanted - limit
        mean = max(1, usage.total // max(1, len(waiting_jobs)))
        raise bytes_refusal(
            job, verdict, usage, retry_after(math.ceil(excess / mean), self._finished)
        )

    def _usage(self, job: Job) -> Usage:
        """What waits of the job's class. (If slots are free, fewer wait than were submitted here.)"""
        counts = waiting_jobs.counts(job.model, job.job_class)
        other_class = waiting_jobs.of_model(job.model) - counts.total
        total = max(0, self._before(job.model) - other_class)
        return counts.usage(job.user, elsewhere=total - counts.total)

    def _before(self, model: str) -> int:
        return waiting(waiting_jobs.of_model(model), self._figures.get(model))

    async def stop(self) -> None:
        """Ends a measurement under way and forgets what was measured."""
        if self._measuring is not None:
            self._measuring.cancel()
            await asyncio.gather(self._measuring, return_exceptions=True)
        self._figures, self._measured_at, self._measuring = {}, -math.inf, None
        self._finished.clear()

    async def _refresh(self) -> None:
        """Has it measured: in the background, except if what is known is too old to tell anything."""
        age = time.monotonic() - self._measured_at
        if age > STALE:
            self._figures = {}
        if age < EVERY or not broker.client().connected:
            return
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(self._measure(), name="backlog")
        if age > STALE:
            await asyncio.wait({self._measuring}, timeout=PATIENCE)

    async def _measure(self) -> None:
        client = broker.client()
        states = client.nodes()
        of_model = queues(states)
        try:
            async with asyncio.timeout(MEASURE_SECONDS):
                depths = await client.depths(sorted(set().union(*of_model.values())))
        except (Unavailable, TimeoutError) as error:
            log.warning(
                "the backlog cannot be measured", reason=str(error) or "the broker does not answer"
            )
            return
        # A state alone proves nothing: whose queue the broker does not have is no node of a tree.
        believed = {name: state for name, state in states.items() if names.node(name) in depths}
        self._figures = {
            model: measured(model, found, depths, believed) for model, found in of_model.items()
        }
        self._measured_at = time.monotonic()
        self._count_finished(believed)

    def _count_finished(self, states: Mapping[str, NodeState]) -> None:
        self._finished.append(
            Finished(self._measured_at, {name: state.finished for name, state in states.items()})
        )
        while self._finished[0].at < self._measured_at - RATE_WINDOW:
            self._finished.popleft()


backlog = Backlog()


def measured(
    model: str, queues: set[str], depths: Mapping[str, int], states: Mapping[str, NodeState]
) -> Figures:
    """The model's figures now, from its queues' depths and its nodes' states."""
    held = sum(min(max(0, each.held), MOST_HELD) for each in states.values() if each.model == model)
    return Figures(
        waiting=held + sum(depths.get(queue, 0) for queue in queues),
        free=max(0, offered(model, states.values()).free),
        own=waiting_jobs.of_model(model),
    )


def refusal(job: Job, verdict: Verdict, usage: Usage, seconds: int) -> ApiError:
    """The answer to a job that would be one too many."""
    number = usage.total + 1
    everybody, mine = _in_words(usage.total, job.job_class), _in_words(usage.mine, job.job_class)
    if verdict is Verdict.USER_FULL:
        in_all = max(usage.total, usage.mine)  # some of the user's may be on their way to a slot
        reason = (
            f"you have {mine} waiting for {job.model!r}, and no more may wait while there are {in_all} in all; "
            f"your next would have been number {number}"
        )
    else:
        reason = f"{everybody} wait for {job.model!r}, and no more may; yours would have been number {number}"
    headers = {"Retry-After": str(seconds), "X-Canopy-Position": str(number)}
    return ApiError(
        429, f"{reason}: try again in {seconds} s", code="backlog_full", headers=headers
    )


def _in_words(jobs: int, job_class: JobClass) -> str:
    kind = "batch job" if job_class == "batch" else "job"
    return f"{jobs} {kind}" if jobs == 1 else f"{jobs} {kind}s"


def bytes_refusal(job: Job, verdict: Verdict, usage: Usage, seconds: int) -> ApiError:
    """The answer to a job whose prompt is too large to wait beside those that do."""
    kind = "batch jobs" if job.job_class == "batch" else "jobs"
    total, mine = _megabytes(usage.total), _megabytes(usage.mine)
    if verdict is Verdict.USER_FULL:
        reason = f"your waiting {kind} hold {mine} of prompts, and no more may wait while all hold {total}"
    else:
        reason = f"the waiting {kind} hold {total} of prompts, and no more may wait"
    headers = {"Retry-After": str(seconds)}
    return ApiError(
        429, f"{reason}: try again in {seconds} s", code="backlog_full", headers=headers
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
