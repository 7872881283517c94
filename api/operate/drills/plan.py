"""What a drill would do, whether it can be done, and when it is over. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from broker.drill_messages import DrillCounts
from broker.host_messages import HostState
from broker.job_messages import JobReport, RunningJob, WaitingJob

SETTLE_SECONDS = 1.0  # after the kill, before "no job was affected" means anything

Node = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A drill that could begin now. `refusal`: why it cannot; empty if it can.

    `running`, `waiting`: the jobs that the node's process has now; `waiting_count`: of all that
    wait, also of those that are not listed.
    """

    node: str
    host: str
    refusal: str
    running: tuple[RunningJob, ...] = ()
    waiting: tuple[WaitingJob, ...] = ()
    waiting_count: int = 0


def plan(node: Node, hosts: Iterable[HostState], report: JobReport | None) -> Plan:
    """What killing the node would hit. `report`: of its jobs, if it answered."""
    name = node["name"]
    state = _host_of(name, hosts)
    host = state.name if state is not None else ""
    refusal = _refusal(node, state)
    if report is None:
        return Plan(node=name, host=host, refusal=refusal)
    return Plan(
        node=name,
        host=host,
        refusal=refusal,
        running=report.running,
        waiting=report.waiting,
        waiting_count=report.waiting_count,
    )


def _host_of(name: str, hosts: Iterable[HostState]) -> HostState | None:
    for state in hosts:
        if any(node.name == name for node in state.nodes):
            return state
    return None


def _refusal(node: Node, state: HostState | None) -> str:
    name = node["name"]
    if node["state"] == "down":
        return f"{name} is down already"
    if state is None:
        return f"no agent runs {name}: drills kill nodes of ./canopy up and ./canopy agent alone"
    if not state.drills:
        return (
            f"drills are not allowed on {state.name}: start ./canopy up or its agent there "
            "with CANOPY_DRILLS=1"
        )
    return ""


def is_over(counts: DrillCounts, back: float | None, seconds: float) -> bool:
    """Whether all affected jobs go on or have ended, and the node is back. `seconds`: so far."""
    return counts.open == 0 and back is not None and seconds >= SETTLE_SECONDS


def came_back(tree_nodes: Sequence[Node], name: str, former_pid: int) -> bool:
    """Whether another process serves under the node's name."""
    for node in tree_nodes:
        if node["name"] == name:
            return node["state"] in ("idle", "busy") and node["pid"] != former_pid
    return False


class Result(Protocol):
    """What the result's sentence needs: counts on the wire, or a stored drill."""

    @property
    def affected(self) -> int: ...
    @property
    def moved(self) -> int: ...
    @property
    def returned(self) -> int: ...
    @property
    def lost(self) -> int: ...
    @property
    def left(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def slowest(self) -> float | None: ...


def sentence(counts: Result, back: float | None) -> str:
    """The result, for people who read English."""
    parts = [
        f"{_jobs(counts.affected)} affected",
        f"{counts.moved} moved",
        f"{counts.returned} went on at the node itself",
        f"{counts.lost} lost",
    ]
    if counts.left:
        parts.append(f"{counts.left} left by their readers")
    if counts.waiting:
        parts.append(f"{counts.waiting} waited there")
    if counts.slowest is not None:
        parts.append(f"slowest recovery {counts.slowest:.1f} s")
    if back is None:
        parts.append("the node is not back")
    else:
        parts.append(f"the node was back after {back:.1f} s")
    return ", ".join(parts)


def _jobs(number: int) -> str:
    if number == 1:
        return "1 job"
    return f"{number} jobs"
