"""Trees of thousands of nodes, simulated: the counters' traffic, and the root as a bottleneck.

Nodes decide as real ones do (bench/policy/simulation). What a root's process needs for a job and
for a child's report was measured (docs/scaling.md), and it handles one after the other.
"""

from dataclasses import dataclass

from bench.policy.simulation.jobs import Workload
from bench.policy.simulation.simulate import HOP_SECONDS
from bench.policy.simulation.tree import ROOT, Handling, Plan, TreeRun
from bench.report import Row
from topology.dispatch import HoldHigh

SERVICE_SECONDS = 10.0  # of a job, in the mean
JOB_SECONDS = 0.0002  # of a node's process for a job that it forwards
REPORT_SECONDS = 0.0001  # and for the counters of a child
LOAD = 0.9  # share of all slots in use
SERVICES = 3.0  # how long jobs arrive, in mean services; the first of them fills the tree


@dataclass(frozen=True)
class Shape:
    """`roots`: that share the model's nodes and jobs evenly; each is simulated alone."""

    nodes: int
    fanout: int | None
    roots: int = 1


SHAPES = (
    Shape(100, None),
    Shape(1000, None),
    Shape(3000, None),
    Shape(10_000, None),
    Shape(10_000, 100),
    Shape(10_000, None, roots=4),
    Shape(10_000, None, roots=10),
)
NOTE = (
    f"Slots are busy to {LOAD:.0%}. A node's process needs {1000 * JOB_SECONDS:g} ms for a job and "
    f"{1000 * REPORT_SECONDS:g} ms for a child's counters. Repeats of unchanged counters, one in "
    "2 s from each child, come on top; a broker without limits is assumed."
)


def row(shape: Shape, slots: int) -> Row:
    """What one of the roots has to do, and what that makes of the jobs' time in the system."""
    plan = Plan(shape.nodes // shape.roots, shape.fanout, slots)
    rate = LOAD * plan.capacity  # jobs a mean service
    workload = Workload.poisson(rate, int(SERVICES * rate), seed=1)
    policy = HoldHigh()
    tree = TreeRun(
        plan,
        policy,
        workload,
        HOP_SECONDS / SERVICE_SECONDS,
        policy.report_seconds / SERVICE_SECONDS,
        Handling(JOB_SECONDS / SERVICE_SECONDS, REPORT_SECONDS / SERVICE_SECONDS),
    )
    times = workload.times_in_system(tree.run())
    seconds = workload.arrivals[-1] * SERVICE_SECONDS
    busiest = max(tree.messages(), key=lambda node: (node[3], node[0] == ROOT))
    reports = sum(node[2] for node in tree.messages())
    [of_root] = [node for node in tree.messages() if node[0] == ROOT]
    return {
        "nodes": shape.nodes,
        "fan-out": shape.fanout or "flat",
        "roots": shape.roots,
        "jobs/s": shape.roots * len(workload.arrivals) / seconds,
        "reports/s": shape.roots * reports / seconds,
        "a root's reports/s": of_root[2] / seconds,
        "a root's busy %": 100 * of_root[3] * SERVICE_SECONDS / seconds,
        "busiest node %": 100 * busiest[3] * SERVICE_SECONDS / seconds,
        "mean s": times.mean * SERVICE_SECONDS,
        "p99 s": times.p99 * SERVICE_SECONDS,
    }
