"""The closed loop, and the arithmetic of the dispatch benchmark's tables."""

import asyncio

import pytest

from bench.dispatch import loop, table
from bench.dispatch.contenders import BARE, CANOPY, CELERY, DRAMATIQ, Contender
from bench.dispatch.loop import Block
from bench.dispatch.table import Measurement, Measurements


def contender(name: str, family: str, hops: int = 1) -> Contender:
    return Contender(name, family, hops, "", [], [], {})


def rounds(*rates: float, latency: float = 1.0) -> list[Measurement]:
    cpu = {"driver": 0.5, "workers": 0.25, "broker": 0.25}
    return [Measurement(1.0, [latency] * int(rate), cpu) for rate in rates]


CONTENDERS = [
    contender("bare AMQP, 2 hops", BARE, 2),
    contender("Canopy hold-high, 2 hops", CANOPY, 2),
    contender("Celery slow", CELERY),
    contender("Celery fast", CELERY),
    contender("dramatiq", DRAMATIQ),
]
MEASURED: Measurements = {
    ("bare AMQP, 2 hops", 1): rounds(100, 100, latency=2.0),
    ("bare AMQP, 2 hops", 100): rounds(1000, 2000),
    ("Canopy hold-high, 2 hops", 1): rounds(50, 50, latency=3.0),
    ("Canopy hold-high, 2 hops", 100): rounds(600, 1200),
    ("Celery slow", 1): rounds(10, 10),
    ("Celery slow", 100): rounds(50, 50),
    ("Celery fast", 1): rounds(200, 10),
    ("Celery fast", 100): rounds(100, 240),
    ("dramatiq", 1): rounds(10, 10),
    ("dramatiq", 100): rounds(600, 1200),
}


def test_goals_compare_the_best_loads_of_a_round_with_the_best_of_a_kind() -> None:
    goals = {row["goal"]: row for row in table.goal_table(CONTENDERS, MEASURED).rows}
    celery = goals["throughput / the best Celery"]
    assert (celery["measured"], celery["met"]) == (pytest.approx((3 + 5) / 2), "no")
    dramatiq = goals["throughput / the best dramatiq"]
    assert (dramatiq["measured"], dramatiq["met"]) == (pytest.approx(1.0), "no")
    bare = goals["throughput / bare AMQP"]
    assert (bare["measured"], bare["met"]) == (pytest.approx(0.6), "yes")
    latency = goals["p50, 1 in flight / bare AMQP"]
    assert (latency["measured"], latency["met"]) == (pytest.approx(1.5), "yes")


def test_what_was_not_measured_has_no_goal() -> None:
    only_bare = {("bare AMQP, 2 hops", 1): rounds(100)}
    assert table.goal_table(CONTENDERS[:1], only_bare).rows == []


def test_a_load_is_compared_with_bare_amqp_of_as_many_hops() -> None:
    rows = table.load_table(CONTENDERS, MEASURED, 100).rows
    assert [row["of bare"] for row in rows] == [1.0, 0.6, None, None, None]
    assert rows[1]["jobs/s"] == 900
    assert rows[1]["driver ms"] == pytest.approx((0.5 / 0.6 + 0.5 / 1.2) / 2)


async def test_so_many_are_in_flight_until_the_time_is_over_and_all_are_answered() -> None:
    in_flight, most, answered = 0, 0, 0

    async def request() -> None:
        nonlocal in_flight, most, answered
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.001)
        in_flight -= 1
        answered += 1

    result = await loop.run(request, Block(in_flight=7, seconds=0.05))
    assert (most, in_flight) == (7, 0)
    assert len(result.latencies_ms) == answered >= 7


async def test_what_goes_wrong_ends_the_block() -> None:
    async def request() -> None:
        raise RuntimeError("no answer")

    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        await loop.run(request, Block(in_flight=2, seconds=5))
