"""`bench http`: N event streams through /v1/chat/completions, `echo` at a fixed token rate.

A cell is a number of streams and of API processes, in an instance of its own. When all streams
run, a window is measured: whether tokens came when they were due, and what each process spent.
"""

import asyncio
import os
from dataclasses import asdict, dataclass
from typing import Annotated

import psutil
import typer

from bench import harness, report
from bench.http import load
from bench.http.lateness import LIMIT
from bench.http.load import Load, Outcome
from bench.report import Report, Row, Table

NODES = 2
PROCESSES = ("api", "nodes", "root", "broker", "load")


@dataclass(frozen=True, slots=True)
class Cell:
    """The result of one cell."""

    streams: int
    apis: int
    outcome: Outcome
    stream_kb: float  # growth of the API's resident memory per stream


def command(
    streams: Annotated[
        list[int] | None, typer.Option(min=1, help="Streams at once, repeatable.")
    ] = None,
    apis: Annotated[
        list[int] | None, typer.Option(min=1, help="API processes, repeatable.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Tokens a second in each stream.")] = 20.0,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the measured window.")] = 20.0,
    starts: Annotated[float, typer.Option(min=1, help="Streams started a second.")] = 50.0,
    json_file: report.JsonOption = None,
) -> None:
    """Token streams over HTTP: how many keep up with their rate, and what they cost."""
    settings = {"rate": rate, "seconds": seconds, "starts": starts}
    result = Report("http", {**settings, "nodes": NODES, "engine": "echo"})
    harness.allow_many_connections()
    cells = []
    for api_count in apis or [1, 2]:
        for stream_count in streams or [100, 1000, 2000]:
            name = f"{stream_count} streams, API processes: {api_count}"
            report.say(name)
            try:
                cells.append(_measure(stream_count, api_count, settings))
            except TimeoutError:
                result.notes.append(f"{name}: so far behind that nothing was measured")
    result.tables = tables(cells)
    result.facts["cells"] = [asdict(cell) for cell in cells]
    result.notes += _NOTES
    result.finish(json_file)


_NOTES = (
    f"holds: no stream's 99th percentile of lateness is above {1000 * LIMIT:.0f} ms; none broke. "
    "A token is due at its request's start + its number / rate: the TTFT counts as lateness.",
    "after the first: the worst stream on the schedule that begins with its first token.",
    "tokens a write: more than one where a process was behind and merged them.",
    "load's lag: p99 lateness of the load generator's own timers, which delays its clock as much.",
    "busy: all processors of the machine; near 100 %, processor time is the bound.",
    "memory: growth of the API's resident memory per stream, until the end of the window.",
)


def _measure(streams: int, apis: int, settings: dict[str, float]) -> Cell:
    """Raises NotStarted, and TimeoutError if the load does not come to its end."""
    options = ["--engine", "echo", "--nodes", str(NODES), "--api-processes", str(apis)]
    options += ["--token-delay", str(1 / settings["rate"])]
    # Every node has slots for all streams: how they are shared out is dispatch's matter.
    with harness.running(*options, "--slots", str(streams)) as canopy:
        pids = canopy.pids(grouped=True) | {"load": [os.getpid()]}
        before = _resident(pids["api"])
        plan = Load(canopy.port, canopy.key, canopy.model, streams, **settings)
        outcome = asyncio.run(load.run(plan, {name: pids[name] for name in PROCESSES}))
        growth = _resident(pids["api"]) - before
    return Cell(streams, apis, outcome, growth / streams / 1024)


def _resident(pids: list[int]) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


def tables(cells: list[Cell]) -> list[Table]:
    delivery: list[Row] = []
    lateness: list[Row] = []
    shares: list[Row] = []
    costs: list[Row] = []
    for cell in cells:
        outcome, it = cell.outcome, cell.outcome.delivery
        name = {"streams": cell.streams, "APIs": cell.apis}
        delivery.append(
            name
            | {"delivered %": 100 * it.delivered}
            | it.ttft.cells("TTFT", "p50", "p95", "p99")
            | {"memory KB": cell.stream_kb, "holds": _verdict(outcome)}
        )
        lateness.append(
            name
            | it.gap.cells("gap", "p50", "p99")
            | {"tokens a write": it.tokens / max(1, it.arrivals)}
            | it.late.cells("late", "p50", "p99", "max")
            | {"worst stream p99": it.worst_stream_ms, "after the first": it.worst_lag_ms}
            | outcome.own_lag.cells("load's lag", "p99")
        )
        total = sum(outcome.cpu[process] for process in PROCESSES)
        share = {process: 100 * outcome.cpu[process] / it.seconds for process in PROCESSES}
        cost = {process: 1e6 * outcome.cpu[process] / max(1, it.tokens) for process in PROCESSES}
        busy = {"all": 100 * total / it.seconds, "busy % of all": 100 * outcome.busy}
        shares.append(name | share | busy)
        costs.append(name | cost | {"all": 1e6 * total / max(1, it.tokens)})
    return [
        Table("delivery, ms", delivery, digits=1),
        Table("gaps and lateness, ms", lateness, digits=1),
        Table("processor time, % of one processor", shares, digits=0),
        Table("processor time, microseconds a token", costs, digits=1),
    ]


def _verdict(outcome: Outcome) -> str:
    it = outcome.delivery
    if it.errors:
        return "; ".join(f"{count} x {error}" for error, count in it.errors.items())
    if it.holds:
        return "yes"
    if it.worst_lag_ms <= 1000 * LIMIT:
        return "but for the TTFT"
    return "NO"
