"""`bench fair`: what a light user notices of a flood. `echo`, with a fixed time a token."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from bench import options
from bench.fair import load
from bench.fair.load import SCENARIOS, Outcome
from bench.report import Progress, Report, Row, Table
from bench.stats import Spread


@click.command
@click.option("--questions", type=click.IntRange(min=2), default=60, help="Of the light user.")
@click.option("--flood", type=click.IntRange(min=2), default=1000, help="Requests at any time.")
@click.option("--only", default="", help="Only scenarios with this in their name.")
@options.json_file
def command(questions: int, flood: int, only: str, json_file: Path | None) -> None:
    """Time to first token beside a flood, and the shares of two floods."""
    alone, *others = SCENARIOS
    chosen = [alone] + [scenario for scenario in others if only in scenario.name]
    result = Report("fair", {"questions": questions, "flood": flood})
    progress = Progress(len(chosen))
    outcomes = []
    for scenario in chosen:
        progress.step(scenario.name)
        outcomes.append(asyncio.run(load.measure(scenario, questions, flood)))
    fill(result, outcomes)
    result.finish(json_file)


def fill(result: Report, outcomes: Sequence[Outcome]) -> None:
    """Adds the table and notes. The first outcome is the light user alone."""
    alone = Spread.of(outcomes[0].ttfts).p95
    rows: list[Row] = []
    for outcome in outcomes:
        ttft = Spread.of(outcome.ttfts)
        row: dict[str, object] = {"the light user": outcome.scenario.name}
        row |= ttft.cells("TTFT s", "p50", "p95", "max")
        row["x alone"] = ttft.p95 / alone
        row["services later"] = (ttft.p95 - alone) / load.SERVICE_SECONDS
        total = max(1, sum(outcome.tokens))
        shares = [f"{100 * tokens / total:.1f}" for tokens in outcome.tokens]
        row["floods got %"] = " / ".join(shares) or None
        rows.append(row)
        result.facts[outcome.scenario.name] = {"ttft_seconds": outcome.ttfts}
    result.tables.append(Table("a light user, beside others", rows, digits=3))
    result.notes += [
        "goals beside a flood: p95 of the TTFT at most 1.5 x alone; at most one service later",
        f"TTFT: seconds to the first token, {load.TOKEN_DELAY:g} s of it the engine's. "
        f"A service: one answer, {load.SERVICE_SECONDS:g} s.",
    ]
