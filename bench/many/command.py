"""`bench many`: what a large tree of echo nodes costs, at rest and at work, as it grows."""

import contextlib
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import psutil

from bench import cpu, harness, options
from bench.dispatch import contenders
from bench.dispatch.contenders import CANOPY, RunningContender
from bench.dispatch.loop import Block
from bench.errors import NotStarted
from bench.harness import Instance
from bench.many import simulation
from bench.many.crowd import READY
from bench.report import Progress, Report, Row, Table
from bench.stats import Spread
from cli.home import REPOSITORY
from topology import shape

A_PROCESS = 50  # nodes
_SLOTS = 8  # of a node
_COUNTS = (2, 50, 200)
_START_SECONDS = 300.0
_SETTLE = 5.0  # seconds from the last node's start to the measurement
_BLOCK_SECONDS = 5.0


@click.command
@click.option("--nodes", type=options.COUNT, multiple=True, default=_COUNTS, help="Repeatable.")
@click.option("--fanout", type=click.IntRange(min=0), default=0, help="0: all below the root.")
@click.option("--idle", type=click.FloatRange(min=1), default=15.0, help="Seconds at rest.")
@click.option("--in-flight", type=options.COUNT, default=100, help="Jobs at any time.")
@click.option("--simulate", is_flag=True, help="Trees of up to 10,000 nodes, instead.")
@options.json_file
def command(
    nodes: tuple[int, ...],
    fanout: int,
    idle: float,
    in_flight: int,
    simulate: bool,
    json_file: Path | None,
) -> None:
    """Idle cost, dispatch and memory of a tree of many nodes, 50 in a process, on one broker."""
    if simulate:
        _simulate(json_file)
        return
    result = Report("many", {"nodes": nodes, "fanout": fanout, "slots": _SLOTS})
    progress = Progress(len(nodes))
    rest: list[Row] = []
    work: list[Row] = []
    for count in nodes:
        progress.step(f"{count} nodes")
        with _tree(count, fanout) as (canopy, crowd):
            rest.append({"nodes": count, **_at_rest(canopy, crowd, count, idle)})
            work.append({"nodes": count, **_at_work(canopy, crowd, in_flight)})
    result.tables = [
        Table("at rest: processor time in ms a second, memory in MB", rest),
        Table(f"{in_flight} jobs in flight: processor time in ms a job", work),
    ]
    result.notes.append(
        "One of the nodes is a process of its own. The API's time has the recorder's in it, which "
        "reads the broker's management API once in 5 s, and the states of all nodes."
    )
    result.finish(json_file)


def _simulate(json_file: Path | None) -> None:
    result = Report("many-simulated", {"slots": _SLOTS, "load": simulation.LOAD})
    progress = Progress(len(simulation.SHAPES))
    rows: list[Row] = []
    for each in simulation.SHAPES:
        progress.step(f"{each.nodes} nodes, roots: {each.roots}")
        rows.append(simulation.row(each, _SLOTS))
    result.tables = [Table("simulated: answers of 10 s", rows, digits=1)]
    result.notes.append(simulation.NOTE)
    result.finish(json_file)


@contextlib.contextmanager
def _tree(count: int, fanout: int) -> Iterator[tuple[Instance, list[int]]]:
    """An instance with so many nodes; the processes of all but the first. Raises NotStarted."""
    with contextlib.ExitStack() as stack:
        words = ["--engine", "echo", "--nodes", "1", "--slots", str(_SLOTS)]
        canopy = stack.enter_context(harness.running(*words))
        names = shape.node_names(count)
        edges = []
        for position, name in enumerate(names[1:], 2):
            edges.append(f"{name}={shape.parent_of(position, fanout=fanout or None)}")
        crowd = []
        for first in range(0, len(edges), A_PROCESS):
            crowd.append(_start(stack, canopy, edges[first : first + A_PROCESS]))
        for process in crowd:
            _until_ready(process)
        time.sleep(_SETTLE)
        yield canopy, [process.pid for process in crowd]


def _start(
    stack: contextlib.ExitStack, canopy: Instance, edges: Sequence[str]
) -> "subprocess.Popen[str]":
    environment = canopy.environment | {
        "CANOPY_AMQP_URL": canopy.record["amqp"]["node"],
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-P", "-m", "bench.many.crowd", canopy.model, str(_SLOTS), *edges]
    log = stack.enter_context((canopy.home / "logs" / f"crowd-{edges[0]}.log").open("w"))
    child = harness.child(command, environment, stdout=subprocess.PIPE, stderr=log)
    return stack.enter_context(child)


def _until_ready(process: "subprocess.Popen[str]") -> None:
    """Raises NotStarted."""
    output = process.stdout
    assert output is not None  # noqa: S101 - it is a pipe
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        if not selector.select(_START_SECONDS) or output.readline().strip() != READY:
            raise NotStarted("the nodes do not serve")


def _pids(canopy: Instance, crowd: list[int]) -> dict[str, list[int]]:
    pids = canopy.pids()
    return {name: pids[name] for name in ("broker", "root", "api")} | {"nodes": crowd}


def _at_rest(canopy: Instance, crowd: list[int], count: int, seconds: float) -> Row:
    with cpu.measured(_pids(canopy, crowd)) as usage:
        time.sleep(seconds)
    row: dict[str, object] = {}
    for name in ("broker", "root", "api"):
        row[f"{name} ms"] = 1000 * usage[name] / usage[cpu.SECONDS]
    row["a node ms"] = 1000 * usage["nodes"] / usage[cpu.SECONDS] / max(1, count - 1)
    for name, pids in _pids(canopy, crowd).items():
        memory = sum(psutil.Process(pid).memory_info().rss for pid in pids) / 1e6
        row["a node MB" if name == "nodes" else f"{name} MB"] = (
            memory / max(1, count - 1) if name == "nodes" else memory
        )
    return row


def _at_work(canopy: Instance, crowd: list[int], in_flight: int) -> Row:
    [contender] = [
        each for each in contenders.all_contenders(canopy, CANOPY, 0) if each.name == CANOPY
    ]
    with contenders.running(contender, canopy) as driver:
        return _dispatch(canopy, crowd, driver, in_flight)


def _dispatch(canopy: Instance, crowd: list[int], driver: RunningContender, in_flight: int) -> Row:
    with cpu.measured(_pids(canopy, crowd)) as usage:
        result = driver.measure(Block(in_flight, _BLOCK_SECONDS))
    jobs = len(result.latencies_ms)
    row: dict[str, object] = {"jobs/s": jobs / result.seconds}
    row |= Spread.of(result.latencies_ms).cells("ms", "p50", "p99")
    for name in ("broker", "root", "api", "nodes"):
        row[f"{name} ms"] = 1000 * usage[name] / jobs
    return row
