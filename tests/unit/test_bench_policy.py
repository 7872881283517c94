"""The policy benchmark: the simulator against theory and itself, and the load of a real tree."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from itertools import accumulate
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.policy import measured
from bench.policy.command import command
from bench.policy.simulation.jobs import Workload
from bench.policy.simulation.simulate import (
    CENTRAL,
    DISCIPLINES,
    HOP_SECONDS,
    erlang_c_mean,
    simulate,
)
from bench.policy.simulation.tree import Plan
from bench.report import Report
from bench.stats import Timeline
from broker.errors import Unavailable
from broker.wire import AnyFrame, Failed, Finished, Job, Start

SEVEN = Plan(7, fanout=2)


def jobs(plan: Plan, load: float, count: int, seed: int = 1) -> Workload:
    return Workload.poisson(load * plan.capacity, count, seed)


# ---- the simulator; the seeds are fixed, so each of these gives the same figures every time


@pytest.mark.parametrize(("slots", "load"), [(1, 0.7), (2, 0.7), (7, 0.9)])
def test_the_central_queue_has_the_mean_of_erlang_c(slots: int, load: float) -> None:
    plan = Plan(slots)
    workload = jobs(plan, load, 100_000)
    times = workload.times_in_system(simulate(CENTRAL, plan, workload))
    assert times.mean == pytest.approx(erlang_c_mean(slots, load), rel=0.03)
    assert erlang_c_mean(2, 0.5) == pytest.approx(4 / 3)


plans = st.builds(
    Plan, st.integers(1, 9), st.one_of(st.none(), st.integers(1, 3)), st.integers(1, 3)
)
loads = st.floats(0.2, 1.2)
seeds = st.integers(0, 99)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(DISCIPLINES), plans, loads, seeds, st.floats(0.01, 100))
def test_every_job_starts_once_and_never_in_more_slots_than_there_are(
    discipline: str, plan: Plan, load: float, seed: int, service_seconds: float
) -> None:
    workload = jobs(plan, load, 100, seed)
    starts = simulate(discipline, plan, workload, service_seconds)
    steps = []
    for arrival, start, service in zip(workload.arrivals, starts, workload.services, strict=True):
        assert start >= arrival
        steps += [(start, 1), (start + service, -1)]
    running = accumulate(step for _, step in sorted(steps))
    assert max(running) <= plan.capacity


@settings(max_examples=40, deadline=None)
@given(plans, loads, seeds)
def test_hold_high_with_news_at_once_is_the_central_queue(
    plan: Plan, load: float, seed: int
) -> None:
    workload = jobs(plan, load, 150, seed)
    tree = simulate("hold-high", plan, workload)
    assert tree == pytest.approx(simulate(CENTRAL, plan, workload))


def test_a_hop_is_paid_on_every_edge() -> None:
    workload = Workload([0.0, 0.5, 1.0], [100.0, 100.0, 100.0])
    chain = Plan(3, fanout=1)
    starts = simulate("paper", chain, workload, service_seconds=HOP_SECONDS * 10)
    assert starts == pytest.approx([0.1, 0.7, 1.3])


def test_late_news_cost_and_paper_costs_more() -> None:
    workload = jobs(SEVEN, 0.9, 3000)
    means = []
    for seconds in (float("inf"), 0.4, 0.13):
        starts = simulate("hold-high", SEVEN, workload, seconds)
        means.append(workload.times_in_system(starts).mean)
    means.append(workload.times_in_system(simulate("paper", SEVEN, workload, 1.0)).mean)
    assert means == sorted(means)
    assert means[-1] > 3 * means[0]


# ---- the command


def test_the_command_has_every_discipline_beside_theory(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    done = CliRunner().invoke(command, ["-n", "200", "--load", "0.9", "--json", str(file)])
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text())["tables"]["load 0.9: time in system, mean services"]
    assert [row[""] for row in rows[:-1]] == list(DISCIPLINES)
    assert rows[0]["mean / central"] == 1
    assert rows[-1]["mean"] == pytest.approx(2.03, abs=0.005)


# ---- a real tree


class Answering:
    """Stands for the client: jobs end at once; those of 13 tokens fail, of 14 are not taken."""

    async def submit(self, job: Job) -> AsyncIterator[AnyFrame]:
        if job.sampling.max_tokens == 14:
            raise Unavailable("no broker")
        return self._frames(job)

    async def _frames(self, job: Job) -> AsyncIterator[AnyFrame]:
        yield Start(request_id=job.request_id, node="n1")
        await asyncio.sleep(0)
        if job.sampling.max_tokens == 13:
            yield Failed(request_id=job.request_id, seq=1, code="engine", message="broken")
        else:
            yield Finished(request_id=job.request_id, seq=1, reason="length")


@contextlib.asynccontextmanager
async def connected(_amqp_url: str) -> AsyncIterator[Answering]:
    yield Answering()


async def test_jobs_are_sent_at_their_time_and_each_has_its_own_fate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measured, "connected", connected)
    workload = Workload([0.0, 0.1, 0.2], [12 / 40, 13 / 40, 14 / 40])
    timelines = await measured.send_all("", "echo", workload)
    assert [bool(timeline.error) for timeline in timelines] == [False, True, True]
    for timeline, due in zip(timelines, (0.0, 0.04, 0.08), strict=True):
        assert timeline.ended is not None
        assert timeline.ended >= timeline.sent >= due


def ratios(extra: float = 0.0) -> list[object]:
    """Those of a tree that costs `extra` mean services a job and nothing else."""
    workload = jobs(SEVEN, 0.9, 500)
    timelines = []
    starts = simulate(CENTRAL, SEVEN, workload)
    for arrival, start, service in zip(workload.arrivals, starts, workload.services, strict=True):
        began = start + extra
        timelines.append(Timeline(arrival, times=[began], counts=[0], ended=began + service))
    report = Report("policy-real", {})
    measured.fill(report, SEVEN, "hold-high", workload, timelines)
    return [row["mean / central"] for row in report.tables[0].rows]


def test_a_tree_is_compared_with_the_central_queue_that_gets_the_same_jobs() -> None:
    assert ratios()[0] == pytest.approx(1)
    assert ratios(extra=2.0)[0] > 1.5  # type: ignore[operator]
    assert ratios(extra=2.0)[2] == 1
