"""The real tree: jobs at Poisson moments with drawn lengths, beside the simulated queues that get the very same jobs.

The queues are simulated twice: with the service times that were measured, from each job's first frame to its last, so
that only dispatch is judged; and with the nominal ones (tokens x delay), which no machine keeps.
"""

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bench import cpu, instance, stats
from bench.instance import Instance
from bench.policy import generator
from bench.policy.generator import Sample
from bench.policy.grid import Slowness
from bench.policy.simulation.simulate import (
    CENTRAL,
    WARM_UP,
    Outcome,
    Plan,
    Spread,
    Workload,
    simulate,
)
from bench.report import Report, Rows, say

GOAL_MEAN, GOAL_P99 = 1.20, 1.5
LATE = 0.1  # of a mean service: a generator that is late by more (p99) had no quiet machine
_ROUNDS = 8  # jobs a slot that are run to learn how long a nominal second really takes


@dataclass(frozen=True)
class Settings:
    """What was asked for."""

    nodes: int
    fanout: int | None
    slots: int
    load: float
    jobs: int
    tokens: int
    token_delay: float
    seed: int
    hop: float

    @property
    def plan(self) -> Plan:
        """The tree, for the simulator."""
        return Plan.of(self.nodes, fanout=self.fanout, slots=self.slots)

    def up(self, policy: str) -> list[str]:
        """The options of `canopy up`."""
        words = [
            "--engine",
            "echo",
            "--nodes",
            self.nodes,
            "--slots",
            self.slots,
            "--token-delay",
            self.token_delay,
        ]
        words += ["--fanout", self.fanout] if self.fanout else []
        return [*map(str, words), "--policy", policy]


@dataclass(frozen=True)
class Run:
    """What was measured under one policy. `cpu`: cores busy, by process."""

    policy: str
    samples: Sequence[Sample]
    cpu: dict[str, float]

    @property
    def service(self) -> float:
        """Mean of the measured service times, in seconds."""
        return fmean(sample.service for sample in self.samples)

    def spread(self) -> Spread:
        """Time in system, in measured mean service times, without the warm-up."""
        counted = self.samples[int(len(self.samples) * WARM_UP) :]
        return Spread.of([sample.in_system / self.service for sample in counted])

    def waits(self) -> Spread:
        """The same of the time until the first frame."""
        counted = self.samples[int(len(self.samples) * WARM_UP) :]
        return Spread.of([(sample.started - sample.sent) / self.service for sample in counted])

    def workload(self, services: Sequence[float]) -> Workload:
        """These arrivals with those services, in measured mean service times."""
        unit = self.service
        return Workload(
            [sample.sent / unit for sample in self.samples],
            [service / unit for service in services],
        )


def run(settings: Settings, policies: Sequence[str], result: Report) -> bool:
    """Measures every policy on a tree of its own and fills the report; False if a job failed."""
    good = True
    for policy in policies:
        with instance.running(*settings.up(policy)) as canopy:
            found = asyncio.run(_measure(canopy, settings, policy))
        failures = [sample.failure for sample in found.samples if sample.failure]
        if failures:
            result.notes.append(
                f"{policy}: {len(failures)} jobs FAILED, and nothing is told: {failures[0]}"
            )
            good = False
        else:
            _tell(settings, found, result)
    return good


async def _measure(canopy: Instance, settings: Settings, policy: str) -> Run:
    capacity = settings.plan.capacity
    dice = random.Random(settings.seed)
    async with generator.connected(canopy.amqp("api")) as client:
        lengths = generator.tokens_drawn(settings.tokens, capacity * _ROUNDS, dice)
        tried = await generator.keep_busy(client, canopy.model, capacity, lengths)
        inflation = sum(each.service for each in tried) / (sum(lengths) * settings.token_delay)
        say(f"{policy}: a nominal second of service takes {inflation:.3f} s with every slot busy")
        lengths = generator.tokens_drawn(settings.tokens, settings.jobs, dice)
        mean = fmean(lengths) * settings.token_delay * inflation
        plan = generator.schedule(settings.load * capacity / mean, lengths, dice)
        say(f"{policy}: {settings.jobs} jobs of {mean:.3f} s in {plan[-1].at:.0f} s")
        meter = cpu.Meter(
            {**{name: [pid] for name, pid in canopy.pids().items()}, "bench": [os.getpid()]}
        )
        before = meter.read()
        samples = await generator.send_all(client, canopy.model, plan)
        spent = cpu.spent(before, meter.read())
    took = max(sample.ended for sample in samples)
    return Run(policy, samples, {name: seconds / took for name, seconds in spent.items()})


def _tell(settings: Settings, run: Run, result: Report) -> None:
    nominal = [sample.planned.tokens * settings.token_delay for sample in run.samples]
    real = run.workload([sample.service for sample in run.samples])
    ideal = run.workload(nominal)
    delays = Slowness(run.service, settings.hop).of(run.policy)
    best = simulate(CENTRAL, settings.plan, real)
    alike = simulate(run.policy, settings.plan, real, delays=delays)
    least = Spread.of(best.times_in_system())
    rows = [
        _row(f"{run.policy}, measured", run.spread(), run.waits(), least, run.service),
        _simulated(f"{run.policy}, simulated", alike, least, run.service),
        _simulated(f"{CENTRAL}, simulated", best, least, run.service),
        _simulated(
            f"{CENTRAL}, nominal service",
            simulate(CENTRAL, settings.plan, ideal),
            least,
            run.service,
        ),
    ]
    columns = (
        "",
        "mean",
        "p50",
        "p95",
        "p99",
        "wait",
        "mean ms",
        f"mean / {CENTRAL}",
        f"p99 / {CENTRAL}",
    )
    title = f"{run.policy}: time in system, in measured mean service times; load {best.utilisation():.3f}"
    result.tables += [Rows(title, columns, rows), _nodes(run)]
    mean, p99 = run.spread().mean / least.mean, run.spread().p99 / least.p99
    met = mean <= GOAL_MEAN and p99 <= GOAL_P99
    late = [sample.late * 1000 for sample in run.samples]
    inflation = run.service / fmean(nominal)
    result.facts[run.policy] = {
        "mean_ratio": mean, "p99_ratio": p99, "met": met, "service_seconds": run.service, "inflation": inflation,
        "utilisation": best.utilisation(), "late_ms_p99": stats.percentile(late, 99), "cores": run.cpu,
        "jobs": [(each.sent, each.planned.tokens, each.started, each.ended, each.node) for each in run.samples],
    }  # fmt: skip
    result.notes += [
        f"{run.policy}, measured / {CENTRAL}: mean {mean:.3f} (goal: at most {GOAL_MEAN}), p99 {p99:.3f} (at most "
        f"{GOAL_P99}): " + ("met" if met else "MISSED"),
        f"service: {run.service * 1000:.1f} ms measured, {fmean(nominal) * 1000:.1f} ms nominal: {inflation:.3f} times",
        f"the generator was late by {stats.percentile(late, 50):.1f} ms (p50), {stats.percentile(late, 99):.1f} ms "
        f"(p99), {max(late):.1f} ms at most; cores busy: "
        + ", ".join(f"{name} {cores:.2f}" for name, cores in run.cpu.items()),
    ]
    if stats.percentile(late, 99) > LATE * run.service * 1000:
        result.notes.append(
            f"{run.policy}: the machine was too busy with other things for these figures to count"
        )


def _simulated(
    name: str, outcome: Outcome, least: Spread, service: float
) -> tuple[str | float, ...]:
    return _row(
        name, Spread.of(outcome.times_in_system()), Spread.of(outcome.waiting_times()), least, service
    )  # fmt: skip


def _row(
    name: str, spread: Spread, waits: Spread, least: Spread, service: float
) -> tuple[str | float, ...]:
    ratios = (spread.mean / least.mean, spread.p99 / least.p99)
    return (
        name,
        spread.mean,
        spread.p50,
        spread.p95,
        spread.p99,
        waits.mean,
        spread.mean * service * 1000,
        *ratios,
    )


def _nodes(run: Run) -> Rows:
    took = max(sample.ended for sample in run.samples)
    count = Counter(sample.node for sample in run.samples)
    busy: defaultdict[str, float] = defaultdict(float)
    for sample in run.samples:
        busy[sample.node] += sample.service
    rows = [(node, count[node], busy[node] / took) for node in sorted(count)]
    return Rows(f"{run.policy}: who ran them", ("node", "jobs", "busy"), rows)
