"""Estimates of waiting times, against lines whose future is known."""

import pytest

from topology.wait_estimator import Accuracy, WaitEstimator


def run(
    estimator: WaitEstimator, slots: int, seconds: float, rounds: int, work: float = 1.0
) -> float:
    """`slots` always busy with jobs of `seconds`; returns when the last ones started."""
    now, finished = 0.0, 0
    for _ in range(rounds):
        for _ in range(slots):
            estimator.started(now, work)
        estimator.observe(now, slots, finished)
        now, finished = now + seconds, finished + slots
        estimator.observe(now, 0, finished)
    for _ in range(slots):
        estimator.started(now, work)
    estimator.observe(now, slots, finished)
    return now


def starts(estimator: WaitEstimator, now: float, slots: int, works: list[float]) -> list[float]:
    forecast = estimator.forecast(now, slots)
    assert forecast is not None
    return [forecast.next_start(work) for work in works]


def test_nothing_is_told_before_anything_has_ended() -> None:
    estimator = WaitEstimator()
    assert estimator.forecast(0.0, 4) is None
    estimator.started(0.0, 1.0)
    estimator.observe(0.0, 1, 0)
    assert estimator.forecast(5.0, 4) is None


def test_the_line_moves_when_the_running_jobs_end() -> None:
    estimator = WaitEstimator()
    now = run(estimator, slots=2, seconds=4.0, rounds=3)
    assert starts(estimator, now + 1, 2, [1.0] * 4) == pytest.approx([3.0, 3.0, 7.0, 7.0])


def test_time_that_passes_brings_the_start_nearer() -> None:
    estimator = WaitEstimator()
    now = run(estimator, slots=2, seconds=4.0, rounds=3)
    assert starts(estimator, now + 3, 2, [1.0]) == pytest.approx([1.0])
    assert starts(estimator, now + 30, 2, [1.0])[0] > 0, (
        "a job that should have ended will not take for ever, but a while"
    )


def test_more_work_takes_longer() -> None:
    estimator = WaitEstimator()
    now = run(estimator, slots=1, seconds=2.0, rounds=5, work=10.0)
    assert starts(estimator, now, 1, [30.0, 10.0, 10.0]) == pytest.approx([2.0, 8.0, 10.0])


def test_the_mean_follows_what_jobs_take_now() -> None:
    estimator = WaitEstimator()
    now = run(estimator, slots=1, seconds=2.0, rounds=100)
    finished = 100
    for _ in range(400):
        now, finished = now + 6.0, finished + 1
        estimator.observe(now, 0, finished)
        estimator.started(now, 1.0)
        estimator.observe(now, 1, finished)
    assert estimator.job_seconds == pytest.approx(6.0, rel=0.01)


def test_jobs_that_were_lost_or_never_seen_to_start_do_not_count() -> None:
    estimator = WaitEstimator()
    now = run(estimator, slots=2, seconds=4.0, rounds=3)
    estimator.observe(now + 100, 0, 6)  # their nodes are gone
    estimator.observe(now + 100, 2, 6)  # and another runs two
    estimator.observe(now + 104, 0, 8)
    assert estimator.job_seconds == pytest.approx(4.0)


def test_a_free_slot_is_free_now() -> None:
    estimator = WaitEstimator()
    now = run(estimator, slots=1, seconds=4.0, rounds=3)
    assert starts(estimator, now, 2, [1.0, 1.0]) == pytest.approx([0.0, 4.0])


def test_no_slots_no_estimate() -> None:
    estimator = WaitEstimator()
    run(estimator, slots=1, seconds=1.0, rounds=10)
    assert estimator.forecast(100.0, 0) is None


def test_the_error_is_that_of_what_was_told() -> None:
    accuracy = Accuracy()
    assert (accuracy.mean_wait, accuracy.mean_error) == (0.0, 0.0)
    accuracy.add(estimated=10.0, waited=8.0)
    accuracy.add(estimated=1.0, waited=2.0)
    assert (accuracy.mean_wait, accuracy.mean_error) == (5.0, 1.5)
