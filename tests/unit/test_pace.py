"""Estimates of waiting times, against lines whose future is known."""

import pytest

from topology.pace import Accuracy, Pace


def run(pace: Pace, slots: int, seconds: float, rounds: int, work: float = 1.0) -> float:
    """`slots` busy all the time, each job `seconds` long; returns the time at which the last ones have started."""
    now, finished = 0.0, 0
    for _ in range(rounds):
        for _ in range(slots):
            pace.started(now, work)
        pace.observe(now, slots, finished)
        now, finished = now + seconds, finished + slots
        pace.observe(now, 0, finished)
    for _ in range(slots):
        pace.started(now, work)
    pace.observe(now, slots, finished)
    return now


def starts(pace: Pace, now: float, slots: int, works: list[float]) -> list[float]:
    forecast = pace.forecast(now, slots)
    assert forecast is not None
    return [forecast.start_of(work) for work in works]


def test_nothing_is_told_before_anything_has_ended() -> None:
    pace = Pace()
    assert pace.forecast(0.0, 4) is None
    pace.started(0.0, 1.0)
    pace.observe(0.0, 1, 0)
    assert pace.forecast(5.0, 4) is None


def test_the_line_moves_when_the_running_jobs_end() -> None:
    pace = Pace()
    now = run(pace, slots=2, seconds=4.0, rounds=3)
    assert starts(pace, now + 1, 2, [1.0] * 4) == pytest.approx([3.0, 3.0, 7.0, 7.0])


def test_time_that_passes_brings_the_start_nearer() -> None:
    pace = Pace()
    now = run(pace, slots=2, seconds=4.0, rounds=3)
    assert starts(pace, now + 3, 2, [1.0]) == pytest.approx([1.0])
    assert starts(pace, now + 30, 2, [1.0])[0] > 0, (
        "a job that should have ended will not take for ever, but a while"
    )


def test_more_work_takes_longer() -> None:
    pace = Pace()
    now = run(pace, slots=1, seconds=2.0, rounds=5, work=10.0)
    assert starts(pace, now, 1, [30.0, 10.0, 10.0]) == pytest.approx([2.0, 8.0, 10.0])


def test_the_mean_follows_what_jobs_take_now() -> None:
    pace = Pace()
    now = run(pace, slots=1, seconds=2.0, rounds=100)
    finished = 100
    for _ in range(400):
        now, finished = now + 6.0, finished + 1
        pace.observe(now, 0, finished)
        pace.started(now, 1.0)
        pace.observe(now, 1, finished)
    assert pace.job_seconds == pytest.approx(6.0, rel=0.01)


def test_jobs_that_were_lost_or_never_seen_to_start_do_not_count() -> None:
    pace = Pace()
    now = run(pace, slots=2, seconds=4.0, rounds=3)
    pace.observe(now + 100, 0, 6)  # their nodes are gone
    pace.observe(now + 100, 2, 6)  # and another runs two
    pace.observe(now + 104, 0, 8)
    assert pace.job_seconds == pytest.approx(4.0)


def test_a_free_slot_is_free_now() -> None:
    pace = Pace()
    now = run(pace, slots=1, seconds=4.0, rounds=3)
    assert starts(pace, now, 2, [1.0, 1.0]) == pytest.approx([0.0, 4.0])


def test_no_slots_no_estimate() -> None:
    pace = Pace()
    run(pace, slots=1, seconds=1.0, rounds=10)
    assert pace.forecast(100.0, 0) is None


def test_the_error_is_that_of_what_was_told() -> None:
    accuracy = Accuracy()
    assert (accuracy.waited, accuracy.error) == (0.0, 0.0)
    accuracy.add(told=10.0, waited=8.0)
    accuracy.add(told=1.0, waited=2.0)
    assert (accuracy.waited, accuracy.error) == (5.0, 1.5)
