"""The real tree: jobs at Poisson moments, beside simulated queues that get the very same jobs.

The queues are simulated with the measured service times, from each job's first frame to its last,
so that only dispatch is judged; and with the nominal ones (tokens x delay), which no machine keeps.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from bench import harness
from bench.dispatch.canopy_driver import connected, make_job
from bench.harness import Instance
from bench.policy.simulated import delays_of
from bench.policy.simulation.laws import Workload
from bench.policy.simulation.outcome import WARM_UP, Spread
from bench.policy.simulation.plan import Plan
from bench.policy.simulation.simulate import CENTRAL, simulate
from bench.report import Report, Row, Table, say
from bench.stats import percentile
from broker.client import Client
from broker.errors import NoTree, Unavailable
from broker.wire import Failed, Start

GOAL_MEAN, GOAL_P99 = 1.20, 1.5
LATE = 0.1  # of a mean service: a generator later than that (p99) had no quiet machine
_GRACE_SECONDS = 120.0  # beyond the last arrival, for the jobs that wait then
_QUESTION = "one two three four"


@dataclass(frozen=True)
class Settings:
    """The options of the command; see there."""

    nodes: int
    fanout: int | None
    slots: int
    load: float
    jobs: int
    tokens: int
    token_delay: float
    seed: int
    hop_seconds: float

    @property
    def plan(self) -> Plan:
        return Plan.of(self.nodes, fanout=self.fanout, slots=self.slots)


@dataclass(slots=True)
class Sample:
    """One job, in seconds from the beginning. `due`: when it was to be sent."""

    due: float
    tokens: int
    sent: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    node: str = ""
    failure: str = ""

    @property
    def service(self) -> float:
        """From its first frame to its last, as its reader saw them."""
        return self.ended - self.started


def poisson(rate: float, lengths: Sequence[int], rng: random.Random) -> list[Sample]:
    at = 0.0
    samples = []
    for tokens in lengths:
        at += rng.expovariate(rate)
        samples.append(Sample(at, tokens))
    return samples


def draw_lengths(mean: float, count: int, rng: random.Random) -> list[int]:
    """Exponential, rounded to whole tokens and at least one."""
    return [max(1, round(rng.expovariate(1 / mean))) for _ in range(count)]


async def send_all(client: Client, model: str, samples: Sequence[Sample]) -> None:
    """Sends every job in time and returns when all have ended. Raises TimeoutError."""
    began = time.perf_counter()
    limit = 2 * samples[-1].due + _GRACE_SECONDS
    async with asyncio.timeout(limit), asyncio.TaskGroup() as tasks:
        for sample in samples:
            await asyncio.sleep(began + sample.due - time.perf_counter())
            tasks.create_task(_send(client, model, sample, began))


async def _send(client: Client, model: str, sample: Sample, began: float) -> None:
    sample.sent = time.perf_counter() - began
    try:
        async for frame in await client.submit(make_job(model, sample.tokens, _QUESTION)):
            if isinstance(frame, Start):
                sample.started, sample.node = time.perf_counter() - began, frame.node
            elif isinstance(frame, Failed):
                sample.failure = frame.message
    except (Unavailable, NoTree) as error:
        sample.failure = repr(error)
    sample.ended = time.perf_counter() - began


def run(settings: Settings, policies: Sequence[str], result: Report) -> bool:
    """Measures every policy on a tree of its own, fills the report; False if a job failed."""
    words = ["--engine", "echo", "--nodes", str(settings.nodes), "--slots", str(settings.slots)]
    words += ["--token-delay", str(settings.token_delay)]
    if settings.fanout:
        words += ["--fanout", str(settings.fanout)]
    all_good = True
    for policy in policies:
        with harness.running(*words, "--policy", policy) as canopy:
            samples = asyncio.run(_measure(canopy, settings, policy))
        failures = [sample.failure for sample in samples if sample.failure]
        if failures:
            result.notes.append(f"{policy}: {len(failures)} jobs FAILED: {failures[0]}")
            all_good = False
        else:
            fill(settings, policy, samples, result)
    return all_good


async def _measure(canopy: Instance, settings: Settings, policy: str) -> list[Sample]:
    rng = random.Random(settings.seed)
    lengths = draw_lengths(settings.tokens, settings.jobs, rng)
    mean = fmean(lengths) * settings.token_delay
    samples = poisson(settings.load * settings.plan.capacity / mean, lengths, rng)
    say(f"{policy}: {settings.jobs} jobs of {mean:.3f} s in {samples[-1].due:.0f} s")
    async with connected(canopy.amqp("api")) as client:
        await send_all(client, canopy.model, samples)
    return samples


def fill(settings: Settings, policy: str, samples: Sequence[Sample], result: Report) -> None:
    """Adds the policy's table, verdict and facts. The unit is the measured mean service."""
    unit = fmean(sample.service for sample in samples)
    nominal = [sample.tokens * settings.token_delay for sample in samples]
    arrivals = [sample.sent / unit for sample in samples]
    real = Workload(arrivals, [sample.service / unit for sample in samples])
    ideal = Workload(arrivals, [service / unit for service in nominal])
    delays = delays_of(policy, settings.hop_seconds / unit, unit)
    counted = samples[int(len(samples) * WARM_UP) :]
    measured = Spread.of([(sample.ended - sample.sent) / unit for sample in counted])
    central = simulate(CENTRAL, settings.plan, real)
    least = Spread.of(central.times_in_system())
    simulated = simulate(policy, settings.plan, real, delays=delays)
    ideal_central = simulate(CENTRAL, settings.plan, ideal)
    spreads = {
        f"{policy}, measured": measured,
        f"{policy}, simulated": Spread.of(simulated.times_in_system()),
        f"{CENTRAL}, simulated": least,
        f"{CENTRAL}, nominal service": Spread.of(ideal_central.times_in_system()),
    }
    rows: list[Row] = []
    for name, spread in spreads.items():
        ratios = {
            "mean ms": spread.mean * unit * 1000,
            f"mean / {CENTRAL}": spread.mean / least.mean,
            f"p99 / {CENTRAL}": spread.p99 / least.p99,
        }
        rows.append({"": name, **asdict(spread), **ratios})
    title = f"{policy}: time in system, in mean services; load {central.utilisation():.3f}"
    result.tables.append(Table(title, rows))
    mean, p99 = measured.mean / least.mean, measured.p99 / least.p99
    met = mean <= GOAL_MEAN and p99 <= GOAL_P99
    verdict = "met" if met else "MISSED"
    late = percentile([sample.sent - sample.due for sample in samples], 99)
    result.facts[policy] = {
        "mean_ratio": mean,
        "p99_ratio": p99,
        "met": met,
        "service_seconds": unit,
        "inflation": unit / fmean(nominal),
        "late_seconds_p99": late,
        "jobs": [asdict(sample) for sample in samples],
    }
    result.notes += [
        f"{policy}, measured / {CENTRAL}: mean {mean:.3f} (goal: at most {GOAL_MEAN}), p99 "
        f"{p99:.3f} (at most {GOAL_P99}): {verdict}",
        f"service: {unit * 1000:.1f} ms measured, {unit / fmean(nominal):.3f} times the nominal "
        f"one; the generator was late by {late * 1000:.1f} ms (p99)",
    ]
    if late > LATE * unit:
        result.notes.append(f"{policy}: the machine was too busy for these figures to count")
