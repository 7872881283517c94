"""`bench dispatch`: a closed loop; contenders take turns, a block of each load a round."""

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import click

from bench import cpu, harness, options
from bench.dispatch import contenders
from bench.dispatch.contenders import CANOPY, Contender
from bench.dispatch.loop import Block
from bench.dispatch.viewers import delays, watching
from bench.harness import Instance
from bench.report import Progress, Report, Row, Table
from bench.stats import Spread

_LOADS = (1, 10, 100, 1000)
_SLOTS = 1024  # of all nodes together: never the limit


@dataclass(frozen=True)
class Cell:
    """All blocks of a contender with so many requests in flight."""

    contender: str
    in_flight: int
    rates: list[float] = field(default_factory=list)  # jobs a second in each block
    latencies_ms: list[float] = field(default_factory=list)
    cpu: Counter[str] = field(default_factory=Counter)  # processor seconds by group


@click.command
@click.option("--seconds", type=click.FloatRange(min=0.1), default=1.0, help="Of a block.")
@click.option("--rounds", type=options.COUNT, default=3, help="Blocks of each contender and load.")
@click.option("--in-flight", type=options.COUNT, multiple=True, default=_LOADS, help="Repeatable.")
@click.option("--only", default="", help="Only contenders with this in their name.")
@click.option("--nodes", type=options.COUNT, default=1, help="Of a tree that branches in two.")
@click.option("--viewers", type=click.IntRange(0), default=0, help="A row with so many who watch.")
@options.json_file
def command(
    seconds: float,
    rounds: int,
    in_flight: tuple[int, ...],
    only: str,
    nodes: int,
    viewers: int,
    json_file: Path | None,
) -> None:
    """Jobs a second and latency: the tree, HTTP, bare AMQP, Celery."""
    settings = {"seconds": seconds, "rounds": rounds, "in_flight": in_flight}
    settings |= {"nodes": nodes, "viewers": viewers, "peer": contenders.CELERY}
    result = Report("dispatch", settings)
    words = ["--engine", "echo", "--nodes", str(nodes), "--fanout", "2"]
    with harness.running(*words, "--slots", str(math.ceil(_SLOTS / nodes))) as canopy:
        chosen = contenders.all_contenders(canopy, only, viewers)
        blocks = [Block(load, seconds) for load in in_flight]
        cells = _measure(canopy, chosen, blocks, rounds)
        result.tables = [load_table(cells, load) for load in in_flight]
        if viewers:
            result.notes.append(_VIEWERS_NOTE)
            with contenders.running(chosen[0], canopy) as driver:
                result.tables.append(delays(canopy, driver, in_flight[-1], f"n{nodes}"))
    result.notes += _NOTES
    result.finish(json_file)


_VIEWERS_NOTE = (
    "Goals: at most 1.03 x with 10 viewers and 63 nodes; a change is shown within 500 ms. The "
    "processor time of a watched tree has the API's in it."
)
_NOTES = (
    "Canopy and bare AMQP pass two queues and confirm both, as the least tree (root, node) does; "
    "Celery passes one, confirms nothing, and runs with its defaults.",
    "x: Canopy beside the row. Goals: at least 5 x Celery's jobs/s and 0.5 x bare AMQP's, each "
    "with its best load; with 1 in flight, at most 1.5 x bare AMQP's p50.",
    "Celery's sending blocks: at high loads read the throughput, not the latency.",
)


def _measure(
    canopy: Instance, chosen: Sequence[Contender], blocks: Sequence[Block], rounds: int
) -> list[Cell]:
    """Every contender under every load, in turn. Raises NotStarted if one stops answering."""
    progress = Progress(len(chosen) + rounds * len(blocks))
    cells: dict[tuple[str, int], Cell] = {}
    with contextlib.ExitStack() as stack:
        started = []
        for contender in chosen:
            progress.step(f"starting {contender.name}")
            started.append(stack.enter_context(contenders.running(contender, canopy)))
        for number in range(1, rounds + 1):
            for block in blocks:
                progress.step(f"round {number}, {block.in_flight} in flight")
                for running in started:
                    key = running.contender.name, block.in_flight
                    cell = cells.setdefault(key, Cell(*key))
                    pids = {**running.pids, "broker": canopy.pids()["broker"]}
                    with watching(canopy, running.contender.viewers), cpu.measured(pids) as usage:
                        result = running.measure(block)
                    cell.rates.append(len(result.latencies_ms) / result.seconds)
                    cell.latencies_ms.extend(result.latencies_ms)
                    del usage[cpu.SECONDS]
                    cell.cpu.update(usage)
            started.append(started.pop(0))  # so that nobody always follows the same one
    return list(cells.values())


def load_table(cells: Sequence[Cell], in_flight: int) -> Table:
    """A row per contender, each beside Canopy if that was measured."""
    chosen = [cell for cell in cells if cell.in_flight == in_flight]
    references = [cell for cell in chosen if cell.contender == CANOPY]
    rows: list[Row] = []
    for cell in chosen:
        latency = Spread.of(cell.latencies_ms)
        rate = median(cell.rates)
        row: dict[str, object] = {"contender": cell.contender, "jobs/s": round(rate)}
        row |= latency.cells("ms", "p50", "p95", "p99")
        row["cpu ms"] = 1000 * cell.cpu.total() / latency.count
        row["broker's"] = 1000 * cell.cpu["broker"] / latency.count
        for reference in references:
            row["Canopy: x jobs/s"] = median(reference.rates) / rate
            row["x p50"] = median(reference.latencies_ms) / latency.p50
        rows.append(row)
    return Table(f"{in_flight} in flight; processor time is a job's", rows)
