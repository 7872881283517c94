"""What the tree is measured against: queues without a tree, which know everything at once.

Where jobs are served in order of arrival and cannot overtake, a job's start is known as soon as it
arrives: when the first slot of its queue is free (Kiefer and Wolfowitz 1955).
"""

import heapq
import itertools
import random
from collections.abc import Callable

from bench.policy.simulation.laws import Workload
from bench.policy.simulation.outcome import Outcome
from bench.policy.simulation.plan import ROOT, Place, Plan

ALL = "all"  # the one node of a central queue
# from the number of jobs at each node, running or waiting, to the node that gets the next one
Choose = Callable[[list[int]], int]
Chooser = Callable[[int, random.Random], Choose]  # for so many nodes


def central(plan: Plan, workload: Workload) -> Outcome:
    """One queue in front of all slots, first come, first served.

    No discipline that does not know service times has a smaller mean.
    """
    free = [0.0] * plan.capacity  # when each slot is
    starts = []
    for arrival, service in zip(workload.arrivals, workload.services, strict=True):
        start = max(arrival, free[0])
        heapq.heapreplace(free, start + service)
        starts.append(start)
    ran_on = [ALL] * len(starts)
    return _outcome(workload, starts, ran_on, {ALL: plan.capacity}, wait_at=[ROOT] * len(starts))


def flat(plan: Plan, workload: Workload, chooser: Chooser, rng: random.Random) -> Outcome:
    """Every node hangs below the root and has a queue; `chooser` says which one a job joins."""
    choose = chooser(len(plan.parents), rng)
    names = list(plan.parents)
    jobs = [0] * len(names)
    free = [[0.0] * plan.slots for _ in names]
    ends: list[tuple[float, int]] = []
    starts, ran_on = [], []
    for arrival, service in zip(workload.arrivals, workload.services, strict=True):
        while ends and ends[0][0] <= arrival:
            _, node = heapq.heappop(ends)
            jobs[node] -= 1
        node = choose(jobs)
        jobs[node] += 1
        start = max(arrival, free[node][0])
        heapq.heapreplace(free[node], start + service)
        heapq.heappush(ends, (start + service, node))
        starts.append(start)
        ran_on.append(names[node])
    return _outcome(workload, starts, ran_on, dict.fromkeys(names, plan.slots), wait_at=ran_on)


def shortest(_count: int, _rng: random.Random) -> Choose:
    """Join the shortest queue; of equal ones the first."""
    return lambda jobs: jobs.index(min(jobs))


def two_choices(count: int, rng: random.Random) -> Choose:
    """The shorter one of two queues picked at random (Mitzenmacher 2001)."""

    def choose(jobs: list[int]) -> int:
        first = int(rng.random() * count)
        second = (first + 1 + int(rng.random() * (count - 1))) % count
        return first if jobs[first] <= jobs[second] else second

    return choose


def round_robin(count: int, _rng: random.Random) -> Choose:
    """In turn, whatever the queues look like."""
    turns = itertools.cycle(range(count))
    return lambda _jobs: next(turns)


def _outcome(
    workload: Workload,
    starts: list[float],
    ran_on: list[str],
    slots: dict[str, int],
    *,
    wait_at: list[str],
) -> Outcome:
    places: dict[str, Place] = {ROOT: "root", **dict.fromkeys(slots, "leaf")}
    waited = dict.fromkeys(places, 0.0)
    changes = []
    for arrival, start, node in zip(workload.arrivals, starts, wait_at, strict=True):
        if start > arrival:
            waited[node] += start - arrival
            changes += [(arrival, 1), (start, -1)]
    backlogs = itertools.accumulate(change for _, change in sorted(changes))
    largest = max(backlogs, default=0)
    return Outcome(workload, starts, ran_on, slots, places, waited, largest)
