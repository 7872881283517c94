"""`bench many`: a root that handles one message at a time, simulated."""

import pytest

from bench.many import simulation
from bench.many.simulation import Shape
from bench.policy.simulation.jobs import Workload
from bench.policy.simulation.tree import Handling, Plan, TreeRun
from topology.dispatch import HoldHigh


def test_a_root_that_handles_one_job_after_the_other_is_a_queue() -> None:
    """M/D/1: the mean wait is half of load / (1 - load), in handlings (Pollaczek, Khinchine)."""
    plan = Plan(200, slots=100)  # slots for all: only the root's time counts
    workload = Workload.poisson(1000.0, 20_000, seed=1)
    handling, load = 0.0008, 0.8
    tree = TreeRun(plan, HoldHigh(), workload, 0.0, 0.0, Handling(job=handling))
    starts = tree.run()
    waits = [start - at for start, at in zip(starts, workload.arrivals, strict=True)]
    at_the_root = handling * (1 + load / (1 - load) / 2)
    assert sum(waits) / len(waits) == pytest.approx(at_the_root + handling, rel=0.1)
    [root] = [each for each in tree.messages() if each[0] == "root"]
    assert root[1] == 20_000
    assert root[3] == pytest.approx(20_000 * handling)


def test_roots_share_the_work() -> None:
    one = simulation.row(Shape(40, None), slots=2)
    two = simulation.row(Shape(40, None, roots=2), slots=2)
    assert one["jobs/s"] == pytest.approx(two["jobs/s"], rel=0.02)
    assert float(str(two["a root's busy %"])) == pytest.approx(
        float(str(one["a root's busy %"])) / 2, rel=0.1
    )
