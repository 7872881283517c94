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

from bench.policy.simulation import queues
from bench.policy.simulation.laws import Workload
from bench.policy.simulation.network import TreeRun
from bench.policy.simulation.outcome import Outcome
from bench.policy.simulation.plan import Delays, Plan
from topology.dispatch import POLICIES

CENTRAL = "central queue"
NO_DELAYS = Delays()


CHOOSERS: dict[str, queues.Chooser] = {
    "shortest queue": queues.shortest,
    "two choices": queues.two_choices,
    "round robin": queues.round_robin,
}
DISCIPLINES = (CENTRAL, *reversed(POLICIES), *CHOOSERS)


def simulate(
    discipline: str, plan: Plan, workload: Workload, *, delays: Delays = NO_DELAYS, seed: int = 0
) -> Outcome:
    """Runs the workload to its end under one of DISCIPLINES; KeyError for another.

    Only the tree's policies have messages and so `delays`. `seed` is for those that draw.
    """
    if discipline == CENTRAL:
        return queues.central(plan, workload)
    if discipline in POLICIES:
        return TreeRun(plan, POLICIES[discipline](), workload, delays).run()
    return queues.flat(plan, workload, CHOOSERS[discipline], random.Random(seed))
