"""How many jobs of a model wait, and the refusal of one that is too many.

Two figures are looked at, and the larger one counts. What this process has submitted and has not seen begin is exact at
any moment, also within a burst. What waits in the nodes' queues and hands, whoever submitted it, is measured now and
then while requests come in. Jobs that are on their way to a free slot do not wait.
"""

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from api import broker
from api.catalog import supply
from api.errors import ApiError
from api.settings import ENV
from broker.client import Unavailable
from broker.wire import NodeState
from topology import names

log = structlog.get_logger("canopy.api")

EVERY = 0.5  # seconds between two measurements
STALE = 2.0  # seconds after which a measurement is not believed any more; the next request then waits for a new one:
PATIENCE = 0.5  # so long at most
MEASURE_SECONDS = 2.0  # a broker that takes longer to answer is not waited for
RATE_WINDOW = 30.0  # seconds over which finished jobs are counted
RETRY_AFTER = 5  # seconds, where nothing is known


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
    return max(1, math.ceil(places * elapsed / finished)) if finished else RETRY_AFTER


def queues(states: Mapping[str, NodeState]) -> dict[str, set[str]]:
    """The queues in which jobs may wait, by model. A root that is away keeps its queue, under the name that it had."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for state in states.values():
        found[state.model].add(names.node(state.name))
    rooted = {state.model for state in states.values() if state.engine == "none"}
    for model in set(ENV.models) - rooted:
        found[model].add(names.node(names.root_name(model, ENV.models[0])))
    return dict(found)


class Backlog:
    """What waits, by model."""

    def __init__(self) -> None:
        self._figures: dict[str, Figures] = {}
        self._finished: deque[Finished] = deque()
        self._measured_at = -math.inf
        self._measuring: asyncio.Task[None] | None = None

    async def admit(self, model: str) -> None:
        """Returns if one more job may wait. Raises ApiError 429.

        Nothing may be awaited between this and the job's submission, or a burst gets past the limit.
        """
        await self._refresh()
        before = self._before(model)
        if before < ENV.backlog <= broker.client().waiting(model) and self._measuring is not None:
            # Only for the slots that were free then: is it still so?
            await asyncio.wait({self._measuring}, timeout=PATIENCE)
            before = self._before(model)
        figures = self._figures.get(model)
        if before >= ENV.backlog:
            raise refusal(model, before, retry_after(before + 1 - ENV.backlog, self._finished))
        if figures is not None:
            figures.admitted += 1

    def _before(self, model: str) -> int:
        return waiting(broker.client().waiting(model), self._figures.get(model))

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
            log.warning("the backlog cannot be measured", reason=str(error) or "the broker does not answer")
            return
        held: defaultdict[str, int] = defaultdict(int)
        for state in states.values():
            held[state.model] += state.held
        self._figures = {
            model: Figures(
                waiting=held[model] + sum(depths.get(queue, 0) for queue in found),
                free=supply(model).free,
                own=client.waiting(model),
            )
            for model, found in of_model.items()
        }
        self._measured_at = time.monotonic()
        self._count_finished(states)

    def _count_finished(self, states: Mapping[str, NodeState]) -> None:
        self._finished.append(Finished(self._measured_at, {name: state.finished for name, state in states.items()}))
        while self._finished[0].at < self._measured_at - RATE_WINDOW:
            self._finished.popleft()


backlog = Backlog()


def refusal(model: str, before: int, seconds: int) -> ApiError:
    """The answer to a job that would have had `before` others in front of it."""
    message = (
        f"{before} jobs wait for {model!r}, and no more may; yours would have been number {before + 1}: "
        f"try again in {seconds} s"
    )
    headers = {"Retry-After": str(seconds), "X-Canopy-Position": str(before + 1)}
    return ApiError(429, message, code="backlog_full", headers=headers)
