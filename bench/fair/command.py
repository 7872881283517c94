"""`bench fair`: what a light user notices of another who floods the service, over HTTP, with two users' keys.

The light user asks now and then; the other has a thousand requests in the service at any time. Order is the root's
matter (topology/fair_queue.py), so the engine is `echo` with a fixed time a token. Each scenario has an instance of its own.
"""

import asyncio
import resource
from dataclasses import asdict
from typing import Annotated

import typer

from bench import report
from bench.fair import scenarios, table
from bench.fair.scenarios import Beside, Found, Settings, Shared, Shares
from bench.fair.users import Refused
from bench.instance import NotStarted
from bench.report import Report


def command(
    questions: Annotated[
        int, typer.Option(min=2, help="Of the light user, in each scenario.")
    ] = 60,
    flood: Annotated[
        int, typer.Option(min=1, help="Requests of the heavy user at any time.")
    ] = 1000,
    nodes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    slots: Annotated[
        int, typer.Option(min=1, help="Answers a worker writes at the same time.")
    ] = 4,
    tokens: Annotated[
        int, typer.Option(min=2, help="Of an answer; the flood's are half to one and a half.")
    ] = 20,
    token_delay: Annotated[float, typer.Option(min=0.001, help="Seconds a token.")] = 0.05,
    cap: Annotated[
        int, typer.Option(min=1, help="Jobs of a user that run at once, where there is a cap.")
    ] = 6,
    window: Annotated[
        float, typer.Option(min=1, help="Seconds for which two floods are compared.")
    ] = 20.0,
    seed: Annotated[int, typer.Option(help="Decides pauses and lengths.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="Only scenarios with this in their name; repeatable.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="15 questions, and half the scenarios.")
    ] = False,
    json_file: report.JsonOption = None,
) -> None:
    """Time to first token beside another user's 1,000 requests, shares of two floods, and how true estimates are."""
    if quick:
        questions, window = min(questions, 15), min(window, 10.0)
    settings = Settings(
        nodes, slots, tokens, token_delay, questions, (0.5, 1.0), flood, cap, window, seed
    )
    asked, floods = _plan(settings, quick, only or [])
    result = Report("fair", {**asdict(settings), "quick": quick})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most, most)
    )  # a request is an open file, here and in the API
    try:
        found, shared = asyncio.run(_run(asked, floods, settings))
    except Refused as error:
        raise NotStarted(str(error)) from error
    table.tell(result, settings, found, shared)
    result.finish(json_file)


def _plan(settings: Settings, quick: bool, only: list[str]) -> tuple[list[Beside], list[Shares]]:
    """The light user alone is always there: the others are compared with that."""
    alone = Beside("alone", flood=False)
    beside = [
        Beside("beside a flood"),
        Beside(f"beside a flood, at most {settings.cap} jobs a user", capped=True),
        Beside("beside a flood, policy paper", policy="paper"),
        Beside("beside a flood in class batch", flex=True),
    ]
    floods = [Shares("long and short answers", (2 * settings.tokens, settings.tokens // 2))]
    floods += [Shares("a share of 2 and of 1", (settings.tokens, settings.tokens), (2.0, 1.0))]
    if quick:
        beside, floods = beside[:2], floods[:1]
    if only:
        beside = [each for each in beside if any(word in each.name for word in only)]
        floods = [each for each in floods if any(word in each.name for word in only)]
    return [alone, *beside], floods


async def _run(
    asked: list[Beside], floods: list[Shares], settings: Settings
) -> tuple[list[Found], list[Shared]]:
    with report.progress() as bar:
        task = bar.add_task("", total=len(asked) + len(floods))
        found = []
        for each in asked:
            bar.update(task, description=each.name)
            found.append(await scenarios.beside(each, settings))
            bar.advance(task)
        shared = []
        for two in floods:
            bar.update(task, description=two.name)
            shared.append(await scenarios.shared(two, settings))
            bar.advance(task)
    return found, shared
