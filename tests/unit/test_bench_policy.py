"""The policy benchmark: its simulations, what is told of them, and the load that a tree gets."""

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from bench.__main__ import app
from bench.policy import measured, simulated
from bench.policy.measured import Sample
from bench.policy.simulated import Cell, Results, Settings, delays_of
from bench.policy.simulation.laws import Workload
from bench.policy.simulation.plan import Delays, Plan
from bench.policy.simulation.simulate import CENTRAL, DISCIPLINES, simulate
from bench.report import Report
from broker.client import Client
from broker.errors import Unavailable
from broker.wire import AnyFrame, Delta, Failed, Finished, Job, Start

SEVEN = Plan.of(7, fanout=2)


def settings(loads: tuple[float, ...] = (0.5, 0.9), jobs: int = 400) -> Settings:
    return Settings(SEVEN, loads, ["exponential"], "poisson", jobs, 1, 0.002, 1)


def results(chosen: Settings, names: tuple[str, ...] = tuple(DISCIPLINES)) -> Results:
    found = {}
    for load, name in itertools.product(chosen.loads, names):
        cell = Cell("exponential", load, name, delays_of(name, 0.002))
        found["exponential", load, name] = simulated.simulate_one(chosen, cell)
    return found


def test_jobs_bring_exactly_the_work_that_was_asked_for() -> None:
    jobs = simulated.workload(settings(jobs=300), "hyperexponential", 0.5)
    assert sum(jobs.services) == pytest.approx(300)
    assert jobs.arrivals[-1] == pytest.approx(300 / 3.5)


def test_messages_are_slow_beside_the_service_and_only_in_trees() -> None:
    assert delays_of("hold-high", 0.004, 0.5) == Delays(0.004, 0.008)  # reports as the policy asks
    assert delays_of("hold-high", 0.0).report == 0.004
    assert delays_of(CENTRAL, 0.004) == Delays()


def test_tables_have_a_row_per_discipline_and_compare_with_the_central_queue() -> None:
    chosen = settings()
    found = results(chosen)
    table = simulated.law_table("exponential", chosen.loads, found)
    assert [row["discipline"] for row in table.rows] == list(DISCIPLINES)
    mean, p99 = simulated.ratio("exponential", 0.9, found)
    assert mean >= 1
    ratios = simulated.ratio_table(chosen, found).rows
    assert [row["load 0.9"] for row in ratios] == [mean, p99]


def test_a_saturated_discipline_is_marked() -> None:
    chosen = settings(loads=(0.5, 0.99), jobs=3000)
    found = results(chosen, ("paper",))
    assert found["exponential", 0.99, "paper"].is_saturated
    assert not found["exponential", 0.5, "paper"].is_saturated


def test_the_command_repeats_its_results_whatever_the_number_of_processes(tmp_path: Path) -> None:
    facts = []
    for processes in ("1", "2"):
        file = tmp_path / f"{processes}.json"
        options = ["--jobs", "200", "--loads", "0.9", "--services", "exponential,answers"]
        options += ["--processes", processes, "--json", str(file)]
        done = CliRunner().invoke(app, ["policy", *options])
        assert done.exit_code == 0, done.output
        facts.append(json.loads(file.read_text())["facts"])
    assert facts[0] == facts[1]
    assert set(facts[0]["goal"]) == {"mean_ratio", "p99_ratio", "met"}


# ---- the load of a real tree


def test_a_schedule_is_poisson_and_its_lengths_exponential() -> None:
    rng = random.Random(1)
    lengths = measured.draw_lengths(40, 20_000, rng)
    samples = measured.poisson(5.0, lengths, rng)
    assert sum(lengths) / len(lengths) == pytest.approx(40, rel=0.03)
    assert min(lengths) == 1
    assert [sample.tokens for sample in samples] == lengths
    assert samples[-1].due == pytest.approx(4000, rel=0.03)
    assert all(later.due > sooner.due for sooner, later in itertools.pairwise(samples))


class Answering:
    """Stands for the client: jobs end at once; those of 13 tokens fail, of 14 are not taken."""

    def __init__(self) -> None:
        self.asked: list[int | None] = []

    async def submit(self, job: Job) -> AsyncIterator[AnyFrame]:
        self.asked.append(job.sampling.max_tokens)
        if job.sampling.max_tokens == 14:
            raise Unavailable("no broker")
        return self._frames(job)

    async def _frames(self, job: Job) -> AsyncIterator[AnyFrame]:
        yield Start(request_id=job.request_id, node="n1")
        await asyncio.sleep(0)
        yield Delta(request_id=job.request_id, seq=1, text="one")
        if job.sampling.max_tokens == 13:
            yield Failed(request_id=job.request_id, seq=2, code="engine", message="broken")
        else:
            yield Finished(request_id=job.request_id, seq=2, reason="length")


async def test_jobs_are_sent_at_their_time_and_each_has_its_own_fate() -> None:
    client = Answering()
    samples = [Sample(0.0, 12), Sample(0.01, 13), Sample(0.02, 14)]
    await measured.send_all(cast(Client, client), "echo", samples)
    assert client.asked == [12, 13, 14]
    assert all(sample.sent >= sample.due for sample in samples)
    assert [bool(sample.failure) for sample in samples] == [False, True, True]
    assert samples[0].node == "n1"
    assert samples[0].sent <= samples[0].started <= samples[0].ended


def as_measured() -> list[Sample]:
    """What a tree without any cost of its own would have measured: the central queue itself."""
    jobs = simulated.workload(settings(jobs=500), "exponential", 0.9)
    outcome = simulate(CENTRAL, SEVEN, Workload(jobs.arrivals, jobs.services))
    unit = 0.4
    return [
        Sample(arrival * unit, 40, arrival * unit, start * unit, end * unit, "n1")
        for arrival, start, end in zip(jobs.arrivals, outcome.starts, outcome.ends, strict=True)
    ]


def told(samples: list[Sample]) -> tuple[dict[str, Any], str]:
    report = Report("policy-real", {})
    asked = measured.Settings(7, 2, 1, 0.9, len(samples), 40, 0.01, 1, 0.002)
    measured.fill(asked, "hold-high", samples, report)
    return cast(dict[str, Any], report.facts["hold-high"]), " ".join(report.notes)


def test_a_tree_without_cost_is_one_times_the_central_queue() -> None:
    facts, _ = told(as_measured())
    assert facts["mean_ratio"] == pytest.approx(1)
    assert facts["p99_ratio"] == pytest.approx(1)
    assert facts["met"]


def test_time_lost_between_jobs_is_seen_and_a_missed_goal_is_said() -> None:
    samples = as_measured()
    for sample in samples:
        sample.started += 1.0
        sample.ended += 1.0
    facts, notes = told(samples)
    assert facts["mean_ratio"] > measured.GOAL_MEAN
    assert not facts["met"]
    assert "MISSED" in notes


def test_a_generator_that_is_late_says_that_its_figures_do_not_count() -> None:
    samples = as_measured()
    assert "too busy" not in told(samples)[1]
    for sample in samples:
        sample.due -= 0.1
    assert "too busy" in told(samples)[1]
