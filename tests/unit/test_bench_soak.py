"""The soak's pure parts: slopes within lives, the schedule of restarts, and a sample of a real process."""

import itertools
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.soak import slopes
from bench.soak.command import Settings
from bench.soak.sampling import measured
from bench.soak.slopes import MEASURES, Life, Point
from cli.processes import ProcessRecord


def line(level: float, per_hour: float, seconds: int = 600, begin: float = 0.0) -> list[Point]:
    return [(begin + at, level + per_hour * at / 3600) for at in range(0, seconds, 5)]


@given(st.floats(-100, 100), st.floats(-1000, 1000))
def test_a_straight_line_has_its_slope(level: float, per_hour: float) -> None:
    assert slopes.slope([line(level, per_hour)]) == pytest.approx(per_hour, rel=1e-6, abs=1e-6)


def test_lives_at_different_levels_share_a_slope_and_a_restart_is_no_growth() -> None:
    assert slopes.slope(
        [line(100, 0), line(50, 0, begin=600), line(20, 0, begin=1200)]
    ) == pytest.approx(0)
    assert slopes.slope([line(100, 6), line(10, 6, begin=600)]) == pytest.approx(6)


def test_a_longer_life_weighs_more() -> None:
    found = slopes.slope([line(0, 10, seconds=3600), line(0, 0, seconds=60)])
    assert found is not None
    assert 9.9 < found < 10


@pytest.mark.parametrize("lives", [[], [[]], [[(1.0, 5.0)]], [[(1.0, 5.0)], [(9.0, 7.0)]]])
def test_no_time_has_no_slope(lives: list[list[Point]]) -> None:
    assert slopes.slope(lives) is None


def life(name: str, points: list[Point]) -> Life:
    made = Life(name, 1)
    for at, value in points:
        made.add(at, dict.fromkeys(MEASURES, value))
    return made


def test_short_lives_are_left_out_and_nodes_are_one_kind() -> None:
    lives = [
        life("n1", line(10, 6)),
        life("n2", line(30, 6)),
        life("n2", line(0, 900, seconds=100)),
    ]
    rows = slopes.of_processes(
        [*lives, life("root", line(5, 0))], shortest=300, warm_up=60
    ).as_records()
    memory = {row["process"]: row for row in rows if row["measure"] == MEASURES[0]}
    assert set(memory) == {"node", "root"}
    assert memory["node"]["lives"] == 2
    assert memory["node"]["slope per hour"] == pytest.approx(6)
    assert memory["root"]["slope per hour"] == pytest.approx(0)


def test_the_beginning_of_a_life_is_left_out() -> None:
    growing_up = [(float(at), min(at, 60) * 10.0) for at in range(0, 600, 5)]
    (row, *_) = slopes.of_processes(
        [life("api", growing_up)], shortest=300, warm_up=60
    ).as_records()
    assert row["slope per hour"] == pytest.approx(0)
    assert row["mean"] == 600


def test_the_last_sample_of_a_life_is_left_out() -> None:
    (row, *_) = slopes.of_processes(
        [life("api", [*line(8, 0), (600.0, 3.0)])], shortest=300, warm_up=0
    ).as_records()
    assert row["slope per hour"] == pytest.approx(0)


def test_a_cache_that_fills_is_flat_in_the_latter_half_and_a_leak_is_not() -> None:
    filling = [(float(at), min(at, 250) * 10.0) for at in range(0, 600, 5)]
    lives = {"root": line(7, 6), "api": filling}
    rows = slopes.of_processes(
        [life(*each) for each in lives.items()], shortest=300, warm_up=0
    ).as_records()
    late = {
        row["process"]: row["slope, latter half"] for row in rows if row["measure"] == MEASURES[0]
    }
    assert late == {"root": pytest.approx(6), "api": pytest.approx(0)}


def test_the_steepest_life_is_told() -> None:
    lives = [life("n1", line(10, 0)), life("n2", line(10, 12))]
    (row, *_) = slopes.of_processes(lives, shortest=300, warm_up=0).as_records()
    assert row["slope per hour"] == pytest.approx(6)
    assert row["steepest life"] == pytest.approx(12)


def test_the_broker_is_judged_over_the_whole_run() -> None:
    (row,) = slopes.of_broker({"queues": line(20, 2)}).as_records()
    assert row["figure"] == "queues"
    assert row["slope per hour"] == pytest.approx(2)


def settings(**changed: object) -> Settings:
    given = {
        "minutes": 60, "seed": 1, "users": 10, "nodes": 7, "fanout": 2, "slots": 2, "token_delay": 0.05,
        "restart_every": 60.0, "sample_every": 5.0, "spared": [], **changed,
    }  # fmt: skip
    return Settings(**given)  # type: ignore[arg-type]


def test_a_restart_every_minute_repeated_by_its_seed() -> None:
    restarts = settings().restarts()
    assert restarts == settings().restarts() != settings(seed=2).restarts()
    assert len(restarts) == 60
    assert {b.at - a.at for a, b in itertools.pairwise(restarts)} == {60.0}
    assert {each.signal for each in restarts} == {signal.SIGKILL, signal.SIGTERM}
    assert {each.target for each in restarts} == {
        "root",
        "api",
        "broker",
        *(f"n{place}" for place in range(1, 8)),
    }


def test_who_is_spared_is_not_restarted() -> None:
    assert "broker" not in {each.target for each in settings(spared=["broker"]).restarts()}
    assert settings(spared=["root", "api", "broker", "n1"], nodes=1).restarts() == []


def test_a_process_is_measured_and_one_that_is_gone_is_not() -> None:
    me = ProcessRecord.of("me", os.getpid())
    assert me is not None
    values = measured(me)
    assert values is not None
    assert values.keys() == set(MEASURES)
    assert all(value > 0 for value in values.values())
    assert measured(ProcessRecord("stranger", os.getpid(), me.started - 60)) is None
