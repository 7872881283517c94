"""How long jobs wait in a tree and in one central queue. Pure: simulated time, a seed."""

import heapq
import math

from bench.policy.simulation.jobs import Workload
from bench.policy.simulation.tree import Plan, TreeRun
from topology.dispatch import POLICIES

CENTRAL = "central queue"
HOP_SECONDS = 0.002  # a message from node to node
DISCIPLINES = (CENTRAL, *reversed(POLICIES))


def simulate(
    discipline: str, plan: Plan, workload: Workload, service_seconds: float = math.inf
) -> list[float]:
    """When each job starts under one of DISCIPLINES. By default messages take no time."""
    if discipline == CENTRAL:
        return central_queue(plan.capacity, workload)
    policy = POLICIES[discipline]()
    hop = HOP_SECONDS / service_seconds
    report_interval = policy.report_seconds / service_seconds
    return TreeRun(plan, policy, workload, hop, report_interval).run()


def central_queue(slots: int, workload: Workload) -> list[float]:
    """One queue in front of all slots, first come, first served (Kiefer and Wolfowitz 1955)."""
    free = [0.0] * slots  # when each slot is
    starts = []
    for arrival, service in zip(workload.arrivals, workload.services, strict=True):
        start = max(arrival, free[0])
        heapq.heapreplace(free, start + service)
        starts.append(start)
    return starts


def erlang_c_mean(slots: int, load: float) -> float:
    """Exact mean time in system of M/M/c, `load` below 1: Erlang C by way of B (Kleinrock)."""
    offered = slots * load
    blocking = 1.0
    for busy in range(1, slots + 1):
        blocking = offered * blocking / (busy + offered * blocking)
    waits = blocking / (1 - load * (1 - blocking))
    return 1 + waits / (slots * (1 - load))
