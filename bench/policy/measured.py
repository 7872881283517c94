"""The real tree, beside simulated queues with the same jobs and measured service times."""

import asyncio
import time
from collections.abc import Sequence
from statistics import fmean

from bench import harness
from bench.dispatch.canopy_driver import connected, make_job
from bench.policy.simulation.jobs import Workload
from bench.policy.simulation.simulate import CENTRAL, simulate
from bench.policy.simulation.tree import Plan
from bench.report import Report, Row, Table, say
from bench.stats import Spread, Timeline, first_errors
from broker.client import Client
from broker.errors import NoTree, Unavailable
from broker.wire import Failed, Start

GOALS = "goals of what is measured, over the central queue: mean at most 1.20, p99 at most 1.5"
TOKENS, TOKEN_DELAY = 40, 0.01  # of a mean service; seconds each
SERVICE_SECONDS = TOKENS * TOKEN_DELAY
_GRACE_SECONDS = 120.0  # beyond the last arrival, for the jobs that wait then
_QUESTION = "one two three four"


def run(result: Report, plan: Plan, policy: str, workload: Workload) -> bool:
    """Measures on a tree of its own, and fills the report; False if a job failed."""
    words = ["--engine", "echo", "--nodes", str(plan.nodes), "--slots", str(plan.slots)]
    words += ["--token-delay", str(TOKEN_DELAY), "--policy", policy]
    if plan.fanout:
        words += ["--fanout", str(plan.fanout)]
    with harness.running(*words) as canopy:
        seconds = workload.arrivals[-1] * SERVICE_SECONDS
        say(f"{policy}: {len(workload.arrivals)} jobs in {seconds:.0f} s")
        jobs = asyncio.run(send_all(canopy.record["amqp"]["api"], canopy.model, workload))
    failures = first_errors(jobs)
    if failures:
        result.notes.append(f"{policy}: jobs FAILED: {'; '.join(failures)}")
        return False
    fill(result, plan, policy, workload, jobs)
    return True


async def send_all(amqp_url: str, model: str, workload: Workload) -> list[Timeline]:
    """Sends every job in time; timelines are from the beginning. Raises TimeoutError."""
    timelines = []
    limit = 2 * workload.arrivals[-1] * SERVICE_SECONDS + _GRACE_SECONDS
    async with connected(amqp_url) as client:
        began = time.perf_counter()
        async with asyncio.timeout(limit), asyncio.TaskGroup() as tasks:
            for arrival, service in zip(workload.arrivals, workload.services, strict=True):
                due = began + arrival * SERVICE_SECONDS
                await asyncio.sleep(due - time.perf_counter())
                timelines.append(Timeline(time.perf_counter() - began))
                tokens = max(1, round(service * TOKENS))
                tasks.create_task(_send(client, model, tokens, timelines[-1], began))
    return timelines


async def _send(client: Client, model: str, tokens: int, timeline: Timeline, began: float) -> None:
    """The first arrival of the timeline is the start of the job."""
    try:
        async for frame in await client.submit(make_job(model, tokens, _QUESTION)):
            if isinstance(frame, Start):
                timeline.add(time.perf_counter() - began, 0)
            elif isinstance(frame, Failed):
                timeline.error = frame.message
    except (Unavailable, NoTree) as error:
        timeline.error = repr(error)
    timeline.ended = time.perf_counter() - began


def fill(
    result: Report, plan: Plan, policy: str, planned: Workload, timelines: Sequence[Timeline]
) -> None:
    """Adds a table and notes. The unit is the measured mean service."""
    services = [(timeline.ended or 0.0) - timeline.times[0] for timeline in timelines]
    unit = fmean(services)
    jobs = Workload([], [service / unit for service in services])
    starts, delays = [], []
    for arrival, timeline in zip(planned.arrivals, timelines, strict=True):
        jobs.arrivals.append(timeline.sent / unit)
        starts.append(timeline.times[0] / unit)
        delays.append(timeline.sent - arrival * SERVICE_SECONDS)
    central = jobs.times_in_system(simulate(CENTRAL, plan, jobs))
    simulated = jobs.times_in_system(simulate(policy, plan, jobs, service_seconds=unit))
    measured = jobs.times_in_system(starts)
    rows = [
        row(f"{policy}, measured", measured, central),
        row(f"{policy}, simulated", simulated, central),
        row(f"{CENTRAL}, simulated", central, central),
    ]
    load = sum(jobs.services) / (jobs.arrivals[-1] * plan.capacity)
    result.tables.append(Table(f"{policy}, load {load:.3f}: time in system, mean services", rows))
    late_ms = Spread.of(delays, 1000).p99
    result.notes.append(
        f"{policy}: a service took {1000 * unit:.1f} ms; jobs were sent late by {late_ms:.1f} "
        "ms (p99). Beyond a tenth of a service, the figures do not count."
    )


def row(name: str, times: Spread, central: Spread) -> Row:
    """A discipline beside the central queue."""
    cells: dict[str, object] = {"": name, "mean": times.mean, "p50": times.p50, "p99": times.p99}
    cells["mean / central"] = times.mean / central.mean
    cells["p99 / central"] = times.p99 / central.p99
    return cells
