"""The closed loop, and the arithmetic of the dispatch benchmark's tables."""

import asyncio

import pytest

from bench.dispatch import loop, table
from bench.dispatch.contenders import BARE, CANOPY, CELERY, DRAMATIQ, Contender
from bench.dispatch.loop import Question
from bench.dispatch.table import Cell, Found
from bench.report import Report


def contender(name: str, family: str, hops: int = 1, *, confirmed: bool = True) -> Contender:
    return Contender(name, family, hops, "", {}, (), {}, confirmed)


def cells(*rates: float, latency: float = 1.0) -> list[Cell]:
    return [
        Cell(1.0, [latency] * int(rate), {"driver": 0.5, "workers": 0.25, "broker": 0.25})
        for rate in rates
    ]


CHOSEN = [
    contender("bare AMQP, 2 hops", BARE, 2),
    contender("Canopy hold-high, 2 hops", CANOPY, 2),
    contender("Celery slow", CELERY),
    contender("Celery fast", CELERY),
    contender("dramatiq, unconfirmed", DRAMATIQ, confirmed=False),
    contender("dramatiq, confirmed", DRAMATIQ),
]
FOUND: Found = {
    ("bare AMQP, 2 hops", 1): cells(100, 100, latency=2.0),
    ("bare AMQP, 2 hops", 100): cells(1000, 2000),
    ("Canopy hold-high, 2 hops", 1): cells(50, 50, latency=3.0),
    ("Canopy hold-high, 2 hops", 100): cells(600, 1200),
    ("Celery slow", 1): cells(10, 10),
    ("Celery slow", 100): cells(50, 50),
    ("Celery fast", 1): cells(200, 10),
    ("Celery fast", 100): cells(100, 240),
    ("dramatiq, unconfirmed", 1): cells(10, 10),
    ("dramatiq, unconfirmed", 100): cells(600, 1200),
    ("dramatiq, confirmed", 1): cells(10, 10),
    ("dramatiq, confirmed", 100): cells(200, 400),
}


def told() -> dict[str, dict[str, object]]:
    report = Report("dispatch", {}, machine={}, versions={})
    table.tell(report, CHOSEN, FOUND)
    return {str(row["goal"]): row for row in report.tables[-1].as_records()}


def test_goals_compare_the_best_loads_of_a_round_with_the_best_of_a_kind() -> None:
    goals = told()
    assert goals["throughput, 2 hops, x the best Celery"]["found"] == pytest.approx(
        (600 / 200 + 1200 / 240) / 2
    )
    assert goals["throughput, 2 hops, x the best dramatiq"]["found"] == pytest.approx(1.0)
    assert goals["throughput, 2 hops, share of bare AMQP"]["found"] == pytest.approx(0.6)
    assert goals["p50, 2 hops, 1 in flight, x bare AMQP"]["found"] == pytest.approx(1.5)


def test_a_missed_goal_is_told_plainly() -> None:
    met = {goal: row["met"] for goal, row in told().items()}
    assert met == {
        "throughput, 2 hops, x the best Celery": "no",
        "throughput, 2 hops, x the best dramatiq": "no",
        "throughput, 2 hops, x dramatiq that confirms, too": "yes",
        "throughput, 2 hops, share of bare AMQP": "yes",
        "p50, 2 hops, 1 in flight, x bare AMQP": "yes",
    }


def test_processor_time_is_a_job_s_share() -> None:
    cell = cells(100)[0]
    assert cell.rate == 100
    assert cell.cores == 1.0
    assert cell.per_job("driver") == pytest.approx(5.0)


async def test_so_many_are_under_way_until_the_time_is_over_and_all_are_answered() -> None:
    under_way, most, answered = 0, 0, 0

    async def ask() -> None:
        nonlocal under_way, most, answered
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        answered += 1

    block = await loop.closed(ask, Question(in_flight=7, seconds=0.05))
    assert most == 7
    assert under_way == 0
    assert len(block.latencies_ms) == answered >= 7


async def test_what_goes_wrong_ends_the_block() -> None:
    async def ask() -> None:
        raise RuntimeError("no answer")

    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        await loop.closed(ask, Question(in_flight=2, seconds=5))
