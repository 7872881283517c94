"""How long jobs wait in a tree, and elsewhere: discrete events, simulated time, a seed.

    plan = Plan.of(7, fanout=2)
    gaps, services = (draw(exponential, 20_000, random.Random(seed)) for seed in (1, 2))
    jobs = Workload.at_rate(0.9 * plan.capacity, gaps, services)
    Figures.of(simulate("hold-high", plan, jobs)).in_system.mean

The unit of time is the mean service time. The policies of `topology.dispatch` run as in real nodes;
the other disciplines are what they are measured against. Give all of them the same `Workload`:
then they differ by nothing but the discipline.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench.policy.simulation import queues
from bench.policy.simulation.laws import Workload
from bench.policy.simulation.network import TreeRun
from bench.policy.simulation.outcome import Outcome
from bench.policy.simulation.plan import Delays, Plan
from topology.dispatch import POLICIES

CENTRAL = "central queue"
NO_DELAYS = Delays()


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that a discipline may need."""

    plan: Plan
    workload: Workload
    delays: Delays
    rng: random.Random


def _central(case: Case) -> Outcome:
    return queues.central(case.plan, case.workload)


def _tree(policy: str, case: Case) -> Outcome:
    return TreeRun(case.plan, POLICIES[policy](), case.workload, case.delays).run()


def _flat(chooser: queues.Chooser, case: Case) -> Outcome:
    return queues.flat(case.plan, case.workload, chooser, case.rng)


DISCIPLINES: dict[str, Callable[[Case], Outcome]] = {
    CENTRAL: _central,
    **{policy: partial(_tree, policy) for policy in reversed(POLICIES)},
    "shortest queue": partial(_flat, queues.shortest),
    "two choices": partial(_flat, queues.two_choices),
    "round robin": partial(_flat, queues.round_robin),
}


def simulate(
    discipline: str, plan: Plan, workload: Workload, *, delays: Delays = NO_DELAYS, seed: int = 0
) -> Outcome:
    """Runs the workload to its end under one of DISCIPLINES; KeyError for another.

    Only the tree's policies have messages and so `delays`. `seed` is for those that draw.
    """
    return DISCIPLINES[discipline](Case(plan, workload, delays, random.Random(seed)))
