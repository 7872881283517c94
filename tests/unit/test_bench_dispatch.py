"""The closed loop, and the arithmetic of the dispatch benchmark's tables."""

import asyncio
from collections import Counter

import pytest

from bench.dispatch import loop
from bench.dispatch.command import Cell, load_table
from bench.dispatch.loop import Block


def cell(name: str, in_flight: int, *rates: int, latency: float = 1.0) -> Cell:
    usage = Counter(driver=1.5, workers=0.75, broker=0.75)
    latencies = [latency] * sum(rates)
    return Cell(name, in_flight, list(rates), latencies, usage)  # type: ignore[arg-type]


def test_canopy_is_compared_with_every_contender_of_its_load() -> None:
    cells = [
        cell("bare AMQP", 1, 100, latency=2.0),
        cell("bare AMQP", 100, 1000, 1000, 5000),
        cell("Canopy", 1, 50, latency=3.0),
        cell("Canopy", 100, 600, 600, 900),
    ]
    rows = load_table(cells, 100).rows
    assert [row["Canopy: x jobs/s"] for row in rows] == [0.6, 1.0]
    assert rows[1]["jobs/s"] == 600
    assert rows[1]["cpu ms"] == pytest.approx(3000 / 2100)
    assert load_table(cells, 1).rows[0]["x p50"] == 1.5
    assert "x p50" not in load_table(cells[:2], 1).rows[0]


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
