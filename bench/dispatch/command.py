"""`bench dispatch`: what the tree adds to the broker's own work, and what other job queues cost on the same broker.

A closed loop: so many requests under way, each answered one replaced at once. Every contender has its turn with a block
of each load, round after round, so that whatever else the machine does hits all of them alike. They are all running
all the time; those whose turn it is not are idle.
"""

import contextlib
from collections.abc import Sequence
from typing import Annotated

import typer

from bench import cpu, instance, report
from bench.dispatch import contenders, table
from bench.dispatch.contenders import Contender
from bench.dispatch.loop import Question
from bench.dispatch.running import Running, running
from bench.dispatch.table import Cell, Found
from bench.instance import Instance, NotStarted
from bench.report import Report

_WARM_UP = Question(in_flight=100, seconds=0.5)


def command(
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a block.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of each contender and load.")] = 3,
    in_flight: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests under way; may be repeated.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Jobs that Canopy's node runs at once.")] = 1024,
    only: Annotated[
        list[str] | None, typer.Option(help="Only contenders whose name holds this; repeatable.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One round of short blocks: a look, not a result.")
    ] = False,
    json_file: report.JsonOption = None,
) -> None:
    """Jobs a second and latency: the tree, bare AMQP, Celery, dramatiq, FastStream."""
    loads = in_flight or ([1, 100] if quick else [1, 10, 100, 1000])
    if quick:
        seconds, rounds = min(seconds, 0.5), 1
    settings = {
        "seconds": seconds,
        "rounds": rounds,
        "in_flight": loads,
        "slots": slots,
        "peers": contenders.PEERS,
    }
    result = Report("dispatch", settings)
    with instance.running("--engine", "echo", "--nodes", "1") as canopy:
        chosen = [each for each in contenders.everybody(canopy, slots) if _is_wanted(each, only)]
        found, lost = _measure(canopy, chosen, [Question(load, seconds) for load in loads], rounds)
    table.tell(result, [each for each in chosen if each.name not in lost], found)
    result.notes += [f"{reason}: it is left out" for reason in lost.values()]
    result.finish(json_file)


def _is_wanted(contender: Contender, only: Sequence[str] | None) -> bool:
    return not only or any(word.lower() in contender.name.lower() for word in only)


def _measure(
    canopy: Instance, chosen: Sequence[Contender], questions: Sequence[Question], rounds: int
) -> tuple[Found, dict[str, str]]:
    """Every contender under every load, `rounds` times in turn; and who stopped answering, with the reason. Without
    us and the yardstick there is no result: NotStarted is raised then.
    """
    found: Found = {}
    lost: dict[str, str] = {}
    with contextlib.ExitStack() as stack, report.progress() as bar:
        task = bar.add_task(
            "starting the contenders", total=len(chosen) * (1 + rounds * len(questions))
        )
        started = []
        for contender in chosen:
            bar.update(task, description=f"starting {contender.name}")
            started.append(stack.enter_context(running(contender, canopy.home / "logs")))
            started[-1].measure(_WARM_UP)
            bar.advance(task)
        for number in range(rounds):
            for question in questions:
                for each in _rotated(started, number):
                    name = each.contender.name
                    bar.update(task, description=f"{name}, {question.in_flight} in flight")
                    if name not in lost:
                        try:
                            found.setdefault((name, question.in_flight), []).append(
                                _block(canopy, each, question)
                            )
                        except NotStarted as error:
                            if each.contender.family in (contenders.CANOPY, contenders.BARE):
                                raise
                            lost[name] = str(error)
                    bar.advance(task)
    return {key: cells for key, cells in found.items() if key[0] not in lost}, lost


def _rotated(started: Sequence[Running], by: int) -> list[Running]:
    """Another order each round: nobody always follows the same one."""
    by %= len(started)
    return [*started[by:], *started[:by]]


def _block(canopy: Instance, contender: Running, question: Question) -> Cell:
    meter = cpu.Meter({**contender.pids, "broker": [canopy.pids()["broker"]]})
    before = meter.read()
    block = contender.measure(question)
    return Cell(block.seconds, block.latencies_ms, cpu.spent(before, meter.read()))
