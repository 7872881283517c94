"""The policy benchmark's pure parts: traces, the grid, what is told of it, and the load that a real tree gets."""

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from typer.testing import CliRunner

from bench.__main__ import app
from bench.policy import drawing, generator, grid, measured, tables, trace
from bench.policy.generator import Planned, Sample
from bench.policy.grid import Cell, Jobs, Slowness
from bench.policy.simulation.simulate import CENTRAL, DISCIPLINES, Delays, Plan, Workload, simulate
from bench.report import Report
from broker.client import Client
from broker.errors import Unavailable
from broker.wire import AnyFrame, Delta, Failed, Finished, Job, Start

SEVEN = Plan.of(7, fanout=2)


# ---- traces


@pytest.mark.parametrize(
    ("text", "tokens", "gaps"),
    [
        (
            "\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.6805900,396,109\n"
            "2023-11-16 18:15:49.6805900,1,55\n",
            [44, 109, 55],
            [1.5, 1, 2],
        ),
        (
            "Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18\n45,GPT-4,1087,230\n",
            [18, 230],
            [40, 40],
        ),
        ("id,output_tokens\na,3\nb,4\n", [3, 4], []),
    ],
)
def test_traces_of_several_makes_are_read(
    tmp_path: Path, text: str, tokens: list[float], gaps: list[float]
) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    found = trace.read(file)
    assert found.tokens == tokens
    assert found.gaps == pytest.approx(gaps)


@pytest.mark.parametrize(
    "text", ["", "when,who\n1,2\n", "tokens\n3\n", "tokens\nmany\nfew\n", "time,tokens\n1\n2\n"]
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(trace.BadTrace):
        trace.read(file)


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(trace.BadTrace):
        trace.read(tmp_path / "none.csv")


# ---- the grid and its tables


def small(
    loads: tuple[float, ...] = (0.5, 0.9), count: int = 400
) -> tuple[list[Cell], dict[str, Jobs]]:
    late = Slowness(1.0, 0.002)
    cells = [
        Cell("exponential", load, name, SEVEN, late.of(name), 1)
        for load in loads
        for name in DISCIPLINES
    ]
    return cells, {"exponential": Jobs.drawn("poisson", "exponential", count, 1, ())}


def test_processes_change_nothing_but_the_time() -> None:
    cells, jobs = small(count=200)
    done: list[None] = []
    alone = grid.run(cells, jobs, 1, lambda: done.append(None))
    assert grid.run(cells, jobs, 2, lambda: done.append(None)) == alone
    assert len(done) == 2 * len(cells)


def test_laws_named_trace_are_the_trace() -> None:
    jobs = Jobs.drawn("trace", "trace", 3, 1, ([1.0, 3.0], [10.0, 30.0]))
    assert jobs == Jobs([0.5, 1.5, 0.5], [0.5, 1.5, 0.5])
    with pytest.raises(ValueError, match="trace"):
        Jobs.drawn("trace", "exponential", 3, 1, ())


def test_what_is_drawn_brings_exactly_the_work_that_was_asked_for() -> None:
    jobs = Jobs.drawn("poisson", "hyperexponential", 300, 1, ())
    assert sum(jobs.gaps) == pytest.approx(300)
    assert sum(jobs.services) == pytest.approx(300)


def test_messages_are_slow_beside_the_service_and_only_in_trees() -> None:
    assert Slowness(0.5, 0.002, 0.01).of("hold-high") == Delays(0.004, 0.02)
    assert Slowness(1.0, 0.0).of("hold-high").report == 0.004  # as the policy asks
    assert Slowness(0.5, 0.002, 0.01).of(CENTRAL) == Delays()


def test_every_table_shows_every_case() -> None:
    cells, jobs = small()
    found = grid.run(cells, jobs, 1, lambda: None)
    results = tables.keyed(cells, found)
    wide = tables.of_law("exponential", results)
    assert [row[0] for row in wide.rows] == list(DISCIPLINES)
    assert wide.columns[1:] == ("load 0.5", "load 0.9")
    assert len(tables.details("exponential", 0.9, results).rows) == len(DISCIPLINES)
    mean, p99 = tables.ratio("exponential", 0.9, results)
    assert mean >= 1
    assert [row[2] for row in tables.ratios(results).rows] == [mean, p99]
    assert [row[2] for row in tables.ratios(results, CENTRAL).rows] == [1, 1]
    assert [
        row[3] for row in tables.against_theory("exponential", SEVEN, results).rows
    ] == pytest.approx([1.02, 2.03], abs=0.01)
    everything = json.loads(json.dumps(tables.records(cells, found)))
    assert [(each["load"], each["discipline"]) for each in everything] == [
        (cell.load, cell.discipline) for cell in cells
    ]


def test_a_line_ends_where_its_discipline_saturates() -> None:
    cells, jobs = small(loads=(0.5, 0.99), count=3000)
    cells = [cell for cell in cells if cell.discipline == "paper"]
    results = tables.keyed(cells, grid.run(cells, jobs, 1, lambda: None))
    assert tables.saturated(results["exponential", 0.99, "paper"])
    assert not tables.saturated(results["exponential", 0.5, "paper"])
    lines = {
        line["name"]: line
        for line in cast(list[dict], drawing.picture("exponential", results, "")["lines"])
    }
    assert lines["paper"]["loads"] == [0.5]
    assert lines["paper"]["saturates"]
    assert len(lines["paper"]["mean"]) == len(lines["paper"]["p99"]) == 1
    assert "↑" in str(
        next(row for row in tables.of_law("exponential", results).rows if row[0] == "paper")[2]
    )


def test_the_command_tells_and_writes_what_it_found(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    options = [
        "--jobs",
        "200",
        "--loads",
        "0.5,0.9",
        "--services",
        "exponential,answers",
        "--processes",
        "1",
    ]
    done = CliRunner().invoke(app, ["policy", *options, "--json", str(file)])
    assert done.exit_code == 0, done.output
    record = json.loads(file.read_text())
    assert set(record["facts"]["goal"]) == {"mean_ratio", "p99_ratio", "met"}
    again = CliRunner().invoke(app, ["policy", *options, "--json", str(tmp_path / "again.json")])
    assert again.exit_code == 0
    assert json.loads((tmp_path / "again.json").read_text())["facts"] == record["facts"]


@pytest.mark.parametrize(
    "options",
    [
        ["--loads", "1.2"],
        ["--loads", "much"],
        ["--services", "slow"],
        ["--arrivals", "late"],
        ["--parents", "n1=n2,n2=n1"],
        ["--services", "trace"],
        ["--real", "--policies", "none"],
    ],
)
def test_what_makes_no_sense_is_refused(options: list[str]) -> None:
    done = CliRunner().invoke(app, ["policy", "--jobs", "100", *options])
    assert done.exit_code == 2


# ---- the load of a real tree


def test_a_schedule_is_poisson_and_its_lengths_exponential() -> None:
    dice = random.Random(1)
    lengths = generator.tokens_drawn(40, 20_000, dice)
    plan = generator.schedule(5.0, lengths, dice)
    assert sum(lengths) / len(lengths) == pytest.approx(40, rel=0.03)
    assert min(lengths) == 1
    assert [each.tokens for each in plan] == lengths
    assert plan[-1].at == pytest.approx(4000, rel=0.03)
    assert all(later.at > sooner.at for sooner, later in itertools.pairwise(plan))


class Answering:
    """Stands for the client: every job ends at once, but for those of 13 tokens, which fail, and of 14, not taken."""

    def __init__(self) -> None:
        self.asked: list[int | None] = []
        self.open = self.most = 0

    async def submit(self, job: Job) -> AsyncIterator[AnyFrame]:
        self.asked.append(job.sampling.max_tokens)
        if job.sampling.max_tokens == 14:
            raise Unavailable("no broker")
        return self._frames(job)

    async def _frames(self, job: Job) -> AsyncIterator[AnyFrame]:
        self.open += 1
        self.most = max(self.most, self.open)
        yield Start(request_id=job.request_id, node="n1")
        await asyncio.sleep(0)
        yield Delta(request_id=job.request_id, seq=1, text="one")
        self.open -= 1
        if job.sampling.max_tokens == 13:
            yield Failed(request_id=job.request_id, seq=2, code="engine", message="broken")
        else:
            yield Finished(request_id=job.request_id, seq=2, reason="length")


async def test_jobs_are_sent_at_their_time_and_each_has_its_own_fate() -> None:
    client = Answering()
    plan = [Planned(0.0, 12), Planned(0.01, 13), Planned(0.02, 14)]
    samples = await generator.send_all(cast(Client, client), "echo", plan)
    assert client.asked == [12, 13, 14]
    assert [sample.planned for sample in samples] == plan
    assert all(sample.late >= 0 for sample in samples)
    assert [bool(sample.failure) for sample in samples] == [False, True, True]
    assert samples[0].node == "n1"
    assert samples[0].sent <= samples[0].started <= samples[0].ended


async def test_slots_are_kept_busy_without_a_queue() -> None:
    client = Answering()
    samples = await generator.keep_busy(cast(Client, client), "echo", 3, range(20, 30))
    assert sorted(sample.planned.tokens for sample in samples) == list(range(20, 30))
    assert client.most == 3


def as_measured(workload: Workload, unit: float) -> list[Sample]:
    """What a tree without any cost of its own would have measured: the central queue itself."""
    outcome = simulate(CENTRAL, SEVEN, workload)
    return [
        Sample(Planned(arrival * unit, 40), arrival * unit, start * unit, end * unit, "n1")
        for arrival, start, end in zip(workload.arrivals, outcome.starts, outcome.ends, strict=True)
    ]


def told(samples: list[Sample]) -> Report:
    settings = measured.Settings(
        nodes=7,
        fanout=2,
        slots=1,
        load=0.9,
        jobs=len(samples),
        tokens=40,
        token_delay=0.01,
        seed=1,
        hop=0.002,
    )
    result = Report("policy-real", {})
    measured._tell(settings, measured.Run("hold-high", samples, {"n1": 0.1}), result)
    return result


def test_a_tree_without_cost_is_one_times_the_central_queue() -> None:
    jobs = Jobs.drawn("poisson", "exponential", 500, 1, ())
    samples = as_measured(Workload.at_rate(6.3, jobs.gaps, jobs.services), 0.4)
    facts = cast(dict, told(samples).facts["hold-high"])
    assert facts["mean_ratio"] == pytest.approx(1)
    assert facts["p99_ratio"] == pytest.approx(1)
    assert facts["met"]


def test_time_lost_between_jobs_is_seen_and_a_missed_goal_is_said() -> None:
    jobs = Jobs.drawn("poisson", "exponential", 500, 1, ())
    samples = as_measured(Workload.at_rate(6.3, jobs.gaps, jobs.services), 0.4)
    for sample in samples:
        sample.started += 1.0
        sample.ended += 1.0
    result = told(samples)
    facts = cast(dict, result.facts["hold-high"])
    assert facts["mean_ratio"] > measured.GOAL_MEAN
    assert not facts["met"]
    assert any("MISSED" in note for note in result.notes)


def test_a_generator_that_is_late_says_that_its_figures_do_not_count() -> None:
    jobs = Jobs.drawn("poisson", "exponential", 500, 1, ())
    samples = as_measured(Workload.at_rate(6.3, jobs.gaps, jobs.services), 0.4)
    assert not any("too busy" in note for note in told(samples).notes)
    for sample in samples:
        sample.planned = Planned(sample.planned.at - 0.1, sample.planned.tokens)
    assert any("too busy" in note for note in told(samples).notes)
