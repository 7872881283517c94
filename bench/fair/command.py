"""`bench fair`: what a light user notices of another who floods the service, over HTTP.

The light user asks now and then; the other keeps a thousand requests in the service. The order of
jobs is the root's matter, so the engine is `echo` with a fixed time a token.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from bench import harness, report
from bench.fair import scenarios
from bench.fair.scenarios import BesideFlood, LightResult, Settings, SharesResult, TwoFloods
from bench.fair.users import estimate_row
from bench.report import Report, Row, Table
from bench.stats import Spread

GOAL_RATIO = 1.5  # of the light user's p95 time to first token, beside a flood against alone
_QUICK_QUESTIONS = 15


def command(
    questions: Annotated[
        int, typer.Option(min=2, help="Of the light user, in each scenario.")
    ] = 60,
    flood: Annotated[
        int, typer.Option(min=1, help="Requests of the heavy user at any time.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Decides pauses and lengths.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="Only scenarios with this in their name; repeatable.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="15 questions, and half the scenarios.")
    ] = False,
    json_file: report.JsonOption = None,
) -> None:
    """Time to first token beside a flood, shares of two floods, and the quality of estimates."""
    if quick:
        questions = min(questions, _QUICK_QUESTIONS)
    settings = Settings(questions, flood, seed)
    light, shared = _scenarios(settings, quick, only or [])
    result = Report("fair", asdict(settings))
    harness.allow_many_connections()
    light_results, shared_results = asyncio.run(_run(light, shared, settings))
    fill(result, settings, light_results, shared_results)
    result.finish(json_file)


def _scenarios(
    settings: Settings, quick: bool, only: list[str]
) -> tuple[list[BesideFlood], list[TwoFloods]]:
    """The light user alone comes first, always: the others are compared with that."""
    beside = [
        BesideFlood("beside a flood"),
        BesideFlood(f"beside a flood, at most {scenarios.CAP} jobs a user", capped=True),
        BesideFlood("beside a flood, policy paper", policy="paper"),
        BesideFlood("beside a flood in class batch", flex=True),
    ]
    tokens = scenarios.TOKENS
    floods = [
        TwoFloods("long and short answers", (2 * tokens, tokens // 2)),
        TwoFloods("a share of 2 and of 1", (tokens, tokens), (2.0, 1.0)),
    ]
    if quick:
        beside, floods = beside[:2], floods[:1]
    if only:
        beside = [scenario for scenario in beside if any(word in scenario.name for word in only)]
        floods = [scenario for scenario in floods if any(word in scenario.name for word in only)]
    return [BesideFlood("alone", flood=False), *beside], floods


async def _run(
    light: list[BesideFlood], shared: list[TwoFloods], settings: Settings
) -> tuple[list[LightResult], list[SharesResult]]:
    with report.progress() as bar:
        task = bar.add_task("", total=len(light) + len(shared))
        light_results = []
        for beside in light:
            bar.update(task, description=beside.name)
            light_results.append(await scenarios.beside_flood(beside, settings))
            bar.advance(task)
        shared_results = []
        for floods in shared:
            bar.update(task, description=floods.name)
            shared_results.append(await scenarios.two_floods(floods, settings))
            bar.advance(task)
    return light_results, shared_results


def fill(
    result: Report,
    settings: Settings,
    light: Sequence[LightResult],
    shared: Sequence[SharesResult],
) -> None:
    """Adds tables, verdicts and notes. The first of `light` is the light user alone."""
    alone = Spread.of(light[0].ttfts).p95
    users: list[Row] = []
    estimates: list[Row] = []
    for scenario in light:
        name = scenario.scenario.name
        ttft = Spread.of(scenario.ttfts)
        services_later = (ttft.p95 - alone) / scenarios.SERVICE_SECONDS
        users.append(_light_row(scenario, ttft, alone, services_later))
        if scenario.scenario.flood:
            result.notes.append(_verdict(name, ttft.p95 / alone, services_later))
        quality = estimate_row(scenario.flood)
        if quality is not None:
            estimates.append({"the flood": name, **quality})
        result.facts[name] = {"ttft_seconds": scenario.ttfts}
    title = f"a light user beside {settings.flood} requests of another"
    result.tables += [
        Table(title, users, digits=3),
        Table("estimated waits of the flood, seconds", estimates),
        Table("what two users get who both flood", _share_rows(shared), digits=1),
    ]
    result.notes += [
        f"TTFT: seconds to the first token, {scenarios.TOKEN_DELAY:g} s of it the engine's. "
        "services later: p95 beyond that of the light user alone, in units of one answer "
        f"({scenarios.SERVICE_SECONDS:g} s), once the flood's first requests are admitted.",
        "flood waiting: the fewest of its requests without a token when the light user asked.",
        "estimates: the first that each of the flood's readers got, as rounded text, against the "
        "wait from then on.",
        "entitled: by share, whatever the length of the answers. Both floods always have work.",
    ]


def _light_row(scenario: LightResult, ttft: Spread, alone: float, services_later: float) -> Row:
    return (
        {"the light user": scenario.scenario.name, "asked": len(scenario.light)}
        | {"not begun": sum(client.timeline.first is None for client in scenario.light)}
        | ttft.cells("TTFT", "p50", "p95", "max")
        | {"x alone": ttft.p95 / alone, "services later": services_later}
        | {"flood waiting": scenario.least_waiting}
    )


def _verdict(name: str, ratio: float, services_later: float) -> str:
    ratio_goal = "met" if ratio <= GOAL_RATIO else "MISSED"
    service_goal = "met" if services_later <= 1 else "MISSED"
    return (
        f"{name}: {ratio:.1f} x alone ({ratio_goal}: at most {GOAL_RATIO} x), "
        f"{services_later:.2f} services later ({service_goal}: at most one)"
    )


def _share_rows(shared: Sequence[SharesResult]) -> list[Row]:
    rows: list[Row] = []
    for floods in shared:
        scenario, total = floods.scenario, max(1, sum(floods.tokens))
        for index, share in enumerate(scenario.shares):
            rows.append(
                {
                    "two floods": scenario.name,
                    "tokens an answer": scenario.tokens[index],
                    "share": share,
                    "begun": floods.begun[index],
                    "tokens": floods.tokens[index],
                    "%": 100 * floods.tokens[index] / total,
                    "entitled %": 100 * share / sum(scenario.shares),
                    "least waiting": floods.least_waiting,
                }
            )
    return rows
