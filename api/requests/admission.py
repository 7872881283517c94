"""How many jobs of a model wait, and the refusal of one that is too many (quota.py has the rule).

Two figures are known, and the larger one counts:
- what this process has submitted and has not seen begin: exact at any moment, also in a burst;
- what waits in the nodes' queues and in the nodes, submitted by any process: measured every
  MEASURE_EVERY seconds while requests come in.
Jobs that are on their way to a free slot do not wait.

Interactive and batch jobs are counted apart, and half as many batch jobs may wait. The class of
other processes' jobs is unknown, so they count as both.
"""

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from api.environment import Environment
from api.errors import ApiError
from api.requests.queue_round import QueueRound
from api.requests.quota import Usage, Verdict, decide
from api.requests.waiting_jobs import WaitingJobs, prompt_bytes
from api.settings import MAX_BODY
from broker.client import Client
from broker.errors import Unavailable
from broker.model_supply import supply_of
from broker.node_state import NodeState
from broker.wire import Job, JobClass
from topology import names

log = structlog.get_logger("canopy.api")

MEASURE_EVERY = 0.5  # seconds
STALE_SECONDS = 2.0  # after which a measurement is not used: the next request waits for a new one,
PATIENCE = 0.5  # so many seconds at most
MEASURE_SECONDS = 2.0  # after which a measurement is given up
RATE_WINDOW = 30.0  # seconds over which finished jobs are counted
RETRY_AFTER = 5  # seconds, where the rate is unknown
LONGEST_RETRY_AFTER = 3600  # seconds
MOST_HELD = 10_000  # jobs that a node takes out of its queue (Dispatcher.window)
BATCH_DIVISOR = 2  # batch jobs may use one in so many places
LEAST_DIVISOR = 100  # beyond the limit, every user may still have one in so many places
# Bytes of memory: one character beyond U+FFFF makes a whole Python text take four bytes each.
LARGEST_PROMPT = 4 * MAX_BODY


@dataclass(slots=True)
class Figures:
    """One model as it was measured."""

    waiting: int  # in its nodes' queues, or held by its nodes
    free: int  # slots
    own: int  # this process's jobs that had not begun
    admitted: int = 0  # jobs since


@dataclass(frozen=True, slots=True)
class Finished:
    """How many jobs each node had finished since it started."""

    at: float  # time.monotonic()
    by_node: Mapping[str, int]


def waiting(own: int, measured: Figures | None) -> int:
    """Jobs that wait now. `own`: this process's jobs that have not begun."""
    if measured is None:
        return own
    begun = max(0, measured.own + measured.admitted - own)  # of this process's jobs, since then
    free = max(0, measured.free - begun)
    return max(0, max(own, measured.waiting + own - measured.own) - free)


def retry_after(places: int, samples: deque[Finished]) -> int:
    """Seconds until `places` waiting jobs will have begun, at the rate of RATE_WINDOW."""
    seconds = seconds_until(places, samples)
    if seconds is None:
        return RETRY_AFTER
    return min(LONGEST_RETRY_AFTER, max(1, math.ceil(seconds)))


def seconds_until(places: int, samples: deque[Finished]) -> float | None:
    """The same, not rounded; None if the rate is unknown."""
    if not samples:
        return None
    elapsed = samples[-1].at - samples[0].at
    if elapsed < STALE_SECONDS:
        return None
    before = samples[0].by_node
    finished = 0
    for node, count in samples[-1].by_node.items():
        if node in before:
            finished += max(0, count - before[node])  # less than before: the node was restarted
    if not finished:
        return None
    return places * elapsed / finished


def root_queues(states: Mapping[str, NodeState]) -> set[str]:
    """Those of the roots that tell a state."""
    return {names.node(state.name) for state in states.values() if state.engine == "none"}


def queues(states: Mapping[str, NodeState], models: Sequence[str]) -> dict[str, set[str]]:
    """The queues in which jobs may wait, by model. `models`: those that `up` serves.

    A root that is away keeps its queue, so the queues of those models' roots are included.
    """
    by_model: defaultdict[str, set[str]] = defaultdict(set)
    for state in states.values():
        by_model[state.model].add(names.node(state.name))
    rooted = {state.model for state in states.values() if state.engine == "none"}
    for model in set(models) - rooted:
        by_model[model].add(names.node(names.root_name(model, models[0])))
    return dict(by_model)


def limit_of(most: int, job_class: JobClass) -> int:
    """The part of a limit, in jobs or bytes, that is open to a class."""
    if job_class == "batch":
        return max(1, most // BATCH_DIVISOR)
    return most


class Backlog:
    """What waits, by model."""

    def __init__(self, client: Client, waiting_jobs: WaitingJobs, env: Environment) -> None:
        self._client = client
        self._waiting_jobs = waiting_jobs
        self._env = env
        self._figures: dict[str, Figures] = {}
        self._round = QueueRound()
        self._finished: deque[Finished] = deque()
        self._measured_at = -math.inf
        self._measuring: asyncio.Task[None] | None = None

    async def admit(self, job: Job) -> None:
        """Returns if the job may wait. Raises ApiError 429.

        Nothing may be awaited between this and the job's submission, or a burst exceeds the limit.
        """
        await self._refresh()
        limit = limit_of(self._env.backlog, job.job_class)
        usage = self._usage(job)
        if usage.total < limit <= usage.here and self._measuring is not None:
            # Admitted only because slots were free at the last measurement: is that still so?
            await asyncio.wait({self._measuring}, timeout=PATIENCE)
            usage = self._usage(job)
        self._admit_bytes(job)
        self._admit_one(job, usage, limit)
        figures = self._figures.get(job.model)
        if figures is not None:
            figures.admitted += 1

    def waiting(self, job: Job) -> int:
        """How many jobs of its model and class wait, as far as is known now."""
        return self._usage(job).total

    def seconds_for(self, places: int) -> float | None:
        """Until so many waiting jobs will have begun; None if the rate is unknown."""
        return seconds_until(places, self._finished)

    def _admit_one(self, job: Job, usage: Usage, limit: int) -> None:
        least = max(1, limit // LEAST_DIVISOR)
        verdict = decide(usage, 1, limit, least)
        if verdict is Verdict.ADMITTED:
            return
        places = usage.total + 1 - limit  # until anybody's job is admitted
        if verdict is Verdict.USER_FULL:
            own_places = usage.mine + 1 - usage.fair_share(limit, least)
            places = min(places, own_places * (usage.others + 1))  # users take turns
        raise backlog_full(job, verdict, usage, retry_after(places, self._finished))

    def _admit_bytes(self, job: Job) -> None:
        """Counts this process's own jobs alone: the limit is for its memory."""
        limit = limit_of(self._env.backlog_bytes, job.job_class)
        usage = self._waiting_jobs.bytes(job.job_class).usage(job.user)
        size = prompt_bytes(job)
        verdict = decide(usage, size, limit, max(limit // LEAST_DIVISOR, LARGEST_PROMPT))
        if verdict is Verdict.ADMITTED:
            return
        excess = usage.total + size - limit
        mean = max(1, usage.total // max(1, len(self._waiting_jobs)))
        seconds = retry_after(math.ceil(excess / mean), self._finished)
        raise prompts_too_large(job, verdict, usage, seconds)

    def _usage(self, job: Job) -> Usage:
        """What waits of the job's class. With free slots, that is less than was submitted here."""
        own = self._waiting_jobs.of_model(job.model)
        counts = self._waiting_jobs.counts(job.model, job.job_class)
        other_class = own - counts.total
        total = max(0, waiting(own, self._figures.get(job.model)) - other_class)
        return counts.usage(job.user, elsewhere=total - counts.total)

    async def stop(self) -> None:
        """Ends a measurement under way and forgets what was measured."""
        if self._measuring is not None:
            self._measuring.cancel()
            await asyncio.gather(self._measuring, return_exceptions=True)
        self._figures, self._measured_at, self._measuring = {}, -math.inf, None
        self._finished.clear()

    async def _refresh(self) -> None:
        """Starts a measurement if one is due; waits for it only if the last one is stale."""
        age = time.monotonic() - self._measured_at
        if age > STALE_SECONDS:
            self._figures = {}
        if age < MEASURE_EVERY or not self._client.connected:
            return
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(self._measure(), name="backlog")
        if age > STALE_SECONDS:
            await asyncio.wait({self._measuring}, timeout=PATIENCE)

    async def _measure(self) -> None:
        states = self._client.nodes()
        by_model = queues(states, self._env.models)
        all_queues = set().union(*by_model.values())
        due = self._round.due(root_queues(states), all_queues)
        try:
            async with asyncio.timeout(MEASURE_SECONDS):
                depths = await self._client.depths(due)
        except (Unavailable, TimeoutError) as error:
            reason = str(error) or "the broker does not answer"
            log.warning("the backlog cannot be measured", reason=reason)
            return
        self._round.measured(due, depths)
        # A state alone proves nothing: without a queue in the broker, it is no node of a tree.
        nodes = {
            name: state
            for name, state in states.items()
            if not self._round.is_missing(names.node(name))
        }
        self._figures = {
            model: self._figures_of(model, queues, nodes) for model, queues in by_model.items()
        }
        self._measured_at = time.monotonic()
        self._count_finished(nodes)

    def _figures_of(
        self,
        model: str,
        queues: set[str],
        nodes: Mapping[str, NodeState],
    ) -> Figures:
        in_queues = sum(map(self._round.depth, queues))
        in_nodes = 0
        for state in nodes.values():
            if state.model == model:
                in_nodes += min(max(0, state.held), MOST_HELD)
        return Figures(
            waiting=in_queues + in_nodes,
            free=max(0, supply_of(model, nodes.values()).free),
            own=self._waiting_jobs.of_model(model),
        )

    def _count_finished(self, nodes: Mapping[str, NodeState]) -> None:
        by_node = {name: state.finished for name, state in nodes.items()}
        self._finished.append(Finished(self._measured_at, by_node))
        while self._finished[0].at < self._measured_at - RATE_WINDOW:
            self._finished.popleft()


def backlog_full(job: Job, verdict: Verdict, usage: Usage, seconds: int) -> ApiError:
    """429 for a job that would be one too many."""
    number = usage.total + 1
    if verdict is Verdict.USER_FULL:
        own_jobs = _job_count(usage.mine, job.job_class)
        total = max(usage.total, usage.mine)  # some of the user's may be on their way to a slot
        reason = (
            f"you have {own_jobs} waiting for {job.model!r}, and no more may wait while there are "
            f"{total} in all; your next would have been number {number}"
        )
    else:
        all_jobs = _job_count(usage.total, job.job_class)
        reason = (
            f"{all_jobs} wait for {job.model!r}, and no more may; "
            f"yours would have been number {number}"
        )
    return _try_again(reason, seconds, {"X-Canopy-Position": str(number)})


def prompts_too_large(job: Job, verdict: Verdict, usage: Usage, seconds: int) -> ApiError:
    """429 for a job whose prompt is too large beside those that wait."""
    kind = "batch jobs" if job.job_class == "batch" else "jobs"
    total, mine = _megabytes(usage.total), _megabytes(usage.mine)
    if verdict is Verdict.USER_FULL:
        reason = (
            f"your waiting {kind} hold {mine} of prompts, "
            f"and no more may wait while all hold {total}"
        )
    else:
        reason = f"the waiting {kind} hold {total} of prompts, and no more may wait"
    return _try_again(reason, seconds, {})


def _try_again(reason: str, seconds: int, headers: dict[str, str]) -> ApiError:
    return ApiError(
        429,
        f"{reason}: try again in {seconds} s",
        code="backlog_full",
        params={"seconds": seconds},
        headers={"Retry-After": str(seconds), **headers},
    )


def _job_count(jobs: int, job_class: JobClass) -> str:
    kind = "batch job" if job_class == "batch" else "job"
    return f"{jobs} {kind}" if jobs == 1 else f"{jobs} {kind}s"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
