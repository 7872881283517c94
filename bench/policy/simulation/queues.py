"""What the tree is measured against: queues without a tree, whose news is never late.

Where jobs are served in order of arrival and cannot overtake, a job's start is known as soon as it comes: when the
first slot of its queue is free (Kiefer and Wolfowitz 1955). So there is no event but the arrival.
"""

import heapq
import itertools
import random
from collections.abc import Callable

from bench.policy.simulation.laws import Workload
from bench.policy.simulation.outcome import Outcome
from bench.policy.simulation.plan import ROOT, Place, Plan

ALL = "all"  # stands for the nodes where it makes no difference which one runs a job
Choose = Callable[
    [list[int]], int
]  # from the jobs at each node, running or waiting, to the node that gets the next
Chooser = Callable[[int, random.Random], Choose]  # of so many nodes


def central(plan: Plan, workload: Workload) -> Outcome:
    """One queue in front of all slots, first come, first served: no discipline that does not know service times has a
    smaller mean.
    """
    free = [0.0] * plan.capacity  # when each slot is
    starts = []
    for arrival, service in zip(workload.arrivals, workload.services, strict=True):
        start = max(arrival, free[0])
        heapq.heapreplace(free, start + service)
        starts.append(start)
    return _outcome(workload, starts, [ALL] * len(starts), {ALL: plan.capacity}, central=True)


def flat(plan: Plan, workload: Workload, chooser: Chooser, dice: random.Random) -> Outcome:
    """Every node hangs below the root and has a queue of its own; `chooser` says which one a job joins as it comes."""
    choose = chooser(len(plan.parents), dice)
    jobs = [0 for _ in plan.parents]
    free = [[0.0] * plan.slots for _ in plan.parents]
    ends: list[tuple[float, int]] = []
    names, starts, ran_on = list(plan.parents), [], []
    for arrival, service in zip(workload.arrivals, workload.services, strict=True):
        while ends and ends[0][0] <= arrival:
            jobs[heapq.heappop(ends)[1]] -= 1
        node = choose(jobs)
        jobs[node] += 1
        start = max(arrival, free[node][0])
        heapq.heapreplace(free[node], start + service)
        heapq.heappush(ends, (start + service, node))
        starts.append(start)
        ran_on.append(names[node])
    return _outcome(workload, starts, ran_on, dict.fromkeys(names, plan.slots), central=False)


def shortest(_count: int, _dice: random.Random) -> Choose:
    """Join the shortest queue; of equal ones the first."""
    return lambda jobs: jobs.index(min(jobs))


def two_choices(count: int, dice: random.Random) -> Choose:
    """The shorter one of two queues picked at random (Mitzenmacher 2001)."""

    def choose(jobs: list[int]) -> int:
        one = int(dice.random() * count)
        other = (one + 1 + int(dice.random() * (count - 1))) % count
        return one if jobs[one] <= jobs[other] else other

    return choose


def round_robin(count: int, _dice: random.Random) -> Choose:
    """In turn, whatever the queues look like."""
    last = -1

    def choose(_jobs: list[int]) -> int:
        nonlocal last
        last = (last + 1) % count
        return last

    return choose


def _outcome(
    workload: Workload,
    starts: list[float],
    ran_on: list[str],
    slots: dict[str, int],
    *,
    central: bool,
) -> Outcome:
    """Jobs wait at the root, or at the node that runs them."""
    places: dict[str, Place] = {ROOT: "root", **dict.fromkeys(slots, "leaf")}
    waited, largest = dict.fromkeys(places, 0.0), 0
    steps = []
    for arrival, start, node in zip(workload.arrivals, starts, ran_on, strict=True):
        if start > arrival:
            waited[ROOT if central else node] += start - arrival
            steps += [(arrival, 1), (start, -1)]
    for backlog in itertools.accumulate(step for _, step in sorted(steps)):
        largest = max(largest, backlog)
    return Outcome(workload, starts, ran_on, slots, places, waited, largest)
