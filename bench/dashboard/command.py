"""`bench dashboard`: a tree with and without people who watch it, in turns."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import click

from bench import cpu, harness, options
from bench.dashboard.viewers import Viewers
from bench.dispatch import contenders
from bench.dispatch.contenders import CANOPY, RunningContender
from bench.dispatch.loop import Block
from bench.harness import Instance
from bench.report import Progress, Report, Row, Table
from bench.stats import Spread

_DELAY_CHANGES = 10
_DELAY_SECONDS = 1.0  # between two
_CHANGES = {"drain": ("draining", "drained"), "resume": ("idle", "busy")}


@click.command
@click.option("--nodes", type=options.COUNT, default=63, help="Of the tree, two slots each.")
@click.option("--viewers", type=options.COUNT, default=10)
@click.option("--rounds", type=options.COUNT, default=8, help="Pairs of blocks.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=4.0, help="Of a block.")
@click.option("--in-flight", type=options.COUNT, default=100)
@options.json_file
def command(
    nodes: int, viewers: int, rounds: int, seconds: float, in_flight: int, json_file: Path | None
) -> None:
    """What watching costs: jobs a second with and without viewers."""
    settings = {"nodes": nodes, "viewers": viewers, "rounds": rounds, "in_flight": in_flight}
    result = Report("dashboard", settings)
    engine = ("--engine", "echo", "--nodes", str(nodes), "--fanout", "2", "--slots", "2")
    with harness.running(*engine) as canopy:
        contender = contenders.all_contenders(canopy, CANOPY)[0]
        with contenders.running(contender, canopy.home / "logs") as driver:
            rates, usage = _measure(canopy, driver, viewers, Block(in_flight, seconds), rounds)
            delays = _delays(canopy, driver, in_flight, f"n{nodes}")
    result.tables = [_table(rates, usage), delays]
    result.notes += (
        "Goals: at most 3 % less with 10 viewers and 63 nodes; a change is shown within 500 ms.",
    )
    result.finish(json_file)


Rates = dict[str, list[float]]
_WITHOUT, _WITH = "nobody watches", "with viewers"


def _measure(
    canopy: Instance, driver: RunningContender, viewers: int, block: Block, rounds: int
) -> tuple[Rates, Rates]:
    """Jobs a second, and processor seconds of the API a second, of each block."""
    rates: Rates = {_WITHOUT: [], _WITH: []}
    api: Rates = {_WITHOUT: [], _WITH: []}
    progress = Progress(2 * rounds)
    for number in range(rounds):
        order = [_WITHOUT, _WITH]
        if number % 2:
            order.reverse()
        for case in order:
            progress.step(case)
            with ExitStack() as stack:
                if case == _WITH:
                    watching = Viewers(canopy.port, canopy.key, viewers).watching()
                    stack.enter_context(watching)
                with cpu.measured({"api": canopy.pids()["api"]}) as usage:
                    result = driver.measure(block)
            rates[case].append(len(result.latencies_ms) / result.seconds)
            api[case].append(usage["api"] / result.seconds)
    return rates, api


def _delays(canopy: Instance, driver: RunningContender, in_flight: int, node: str) -> Table:
    """How soon a page shows that `node` was drained and resumed, while every slot is busy."""
    viewers = Viewers(canopy.port, canopy.key, 1)
    delays = []
    load = Block(in_flight, _DELAY_CHANGES * _DELAY_SECONDS)
    with viewers.watching(), ThreadPoolExecutor(1) as pool:
        loading = pool.submit(driver.measure, load)
        for _ in range(_DELAY_CHANGES // 2):
            for action, states in _CHANGES.items():
                time.sleep(_DELAY_SECONDS / 2)
                delays.append(1000 * viewers.ask(node, action, states))
        loading.result()
    spread = Spread.of(delays)
    return Table("Until a page shows a change under load", [spread.cells("ms", "p50", "p95")])


def _table(rates: Rates, api: Rates) -> Table:
    pairs = zip(rates[_WITHOUT], rates[_WITH], strict=True)
    cost = median(1 - watched / alone for alone, watched in pairs)
    rows: list[Row] = []
    for case, less in ((_WITHOUT, None), (_WITH, f"{100 * cost:.1f} %")):
        row: dict[str, object] = {"case": case, "jobs/s": round(median(rates[case]))}
        row |= {"api cpu": round(median(api[case]), 3), "less": less}
        rows.append(row)
    return Table("Throughput; the API's processor seconds a second", rows)
