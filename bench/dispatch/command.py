"""`bench dispatch`: what the tree adds to the broker's work, and what other job queues cost on it.

A closed loop keeps so many requests in flight. Contenders take turns with a block of each load,
round after round, so that a busy machine disturbs all alike; those not in turn are idle.
"""

import contextlib
from collections.abc import Sequence
from typing import Annotated

import typer

from bench import cpu, harness, report
from bench.dispatch import contenders, table
from bench.dispatch.contenders import Contender, RunningContender
from bench.dispatch.loop import Block
from bench.dispatch.table import Measurement, Measurements
from bench.harness import Instance
from bench.report import Report

_WARM_UP = Block(in_flight=100, seconds=0.5)


def command(
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a block.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of each contender and load.")] = 3,
    in_flight: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests in flight, repeatable.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Jobs that Canopy's node runs at once.")] = 1024,
    only: Annotated[
        list[str] | None, typer.Option(help="Only contenders with this in their name; repeatable.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One round of short blocks: a look, not a result.")
    ] = False,
    json_file: report.JsonOption = None,
) -> None:
    """Jobs a second and latency: the tree, HTTP, bare AMQP, Celery, dramatiq."""
    loads = in_flight or [1, 10, 100, 1000]
    if quick:
        seconds, rounds, loads = min(seconds, 0.5), 1, in_flight or [1, 100]
    settings = {"seconds": seconds, "rounds": rounds, "in_flight": loads, "slots": slots}
    result = Report("dispatch", {**settings, "peers": contenders.PEERS})
    harness.allow_many_connections()
    with harness.running("--engine", "echo", "--nodes", "1", "--slots", str(slots)) as canopy:
        chosen = contenders.all_contenders(canopy, slots, only or [])
        blocks = [Block(load, seconds) for load in loads]
        measured = _measure(canopy, chosen, blocks, rounds)
    result.tables = [table.load_table(chosen, measured, load) for load in loads]
    result.tables.append(table.goal_table(chosen, measured))
    result.facts = {
        "contenders": {contender.name: contender.settings for contender in chosen},
        "rates": {
            f"{name}, {load} in flight": [round(each.rate, 1) for each in measurements]
            for (name, load), measurements in measured.items()
        },
    }
    result.notes += _NOTES
    result.finish(json_file)


_NOTES = (
    "hops: queues that a job passes on its way down. Canopy's usual least is 2 (root, node); of 1 "
    "it is a root with the engine. The peers have 1 and are compared with Canopy's 2.",
    "of bare, x bare: ratio to bare AMQP of as many hops, by round. jobs/s: median of the rounds.",
    "Canopy and bare AMQP confirm every hop; Celery and dramatiq confirm nothing unless told to.",
    "dramatiq's sending blocks: at high loads read its throughput, not its latency.",
    "bare AMQP is pika as it comes; Canopy joins frames and acknowledgements.",
)


def _measure(
    canopy: Instance, chosen: Sequence[Contender], blocks: Sequence[Block], rounds: int
) -> Measurements:
    """Every contender under every load, in turn. Raises NotStarted if one stops answering."""
    measured: Measurements = {}
    with contextlib.ExitStack() as stack, report.progress() as bar:
        task = bar.add_task("starting", total=len(chosen) * (1 + rounds * len(blocks)))
        started = []
        for contender in chosen:
            bar.update(task, description=f"starting {contender.name}")
            context = contenders.running(contender, canopy.home / "logs")
            started.append(stack.enter_context(context))
            started[-1].measure(_WARM_UP)
            bar.advance(task)
        for number in range(rounds):
            for block in blocks:
                for running in _rotated(started, number):
                    name = running.contender.name
                    bar.update(task, description=f"{name}, {block.in_flight} in flight")
                    one = _measure_block(canopy, running, block)
                    measured.setdefault((name, block.in_flight), []).append(one)
                    bar.advance(task)
    return measured


def _rotated(started: Sequence[RunningContender], by: int) -> list[RunningContender]:
    """Another order each round, so that nobody always follows the same one."""
    by %= len(started)
    return [*started[by:], *started[:by]]


def _measure_block(canopy: Instance, running: RunningContender, block: Block) -> Measurement:
    with cpu.measured({**running.pids, "broker": canopy.pids()["broker"]}) as usage:
        result = running.measure(block)
    return Measurement(result.seconds, result.latencies_ms, usage)
