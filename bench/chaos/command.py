"""`bench chaos`: users ask all the time while things break, by a schedule that a seed decides.

Every request is followed to its end: see load/ledger.py for what its end can be. The run fails if one was lost, had
text twice or text missing, or was told an error after it had been accepted, and if the tree is not at rest afterwards.
"""

import asyncio
import contextlib
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from bench import instance, report
from bench.chaos import far, rest, schedule, table
from bench.chaos.faults import Saboteur
from bench.chaos.schedule import KINDS, Fault, Happened, Tree
from bench.chaos.victims import Victims
from bench.instance import Instance
from bench.load import users
from bench.load.http import Service
from bench.load.ledger import Ending, Ledger
from bench.management import Management
from bench.report import Report, say

_SHOWN = 30  # failures printed; the rest is in the JSON


@dataclass(frozen=True)
class Settings:
    """What was asked for."""

    minutes: float
    seed: int
    users: int
    nodes: int
    fanout: int
    slots: int
    standby: int
    token_delay: float
    faults_per_minute: float
    kinds: Sequence[str]
    options: Sequence[str]

    def schedule(self) -> list[Fault]:
        """The faults, which these settings alone decide."""
        seconds = 60 * self.minutes
        return schedule.make(
            self.seed, seconds, self.faults_per_minute, self.nodes, self.fanout, self.kinds
        )

    def up(self) -> list[str]:
        """The options of `canopy up`."""
        words = ["--engine", "echo", "--nodes", str(self.nodes), "--fanout", str(self.fanout)]
        words += ["--standby", str(self.standby)]
        return [
            *words,
            "--slots",
            str(self.slots),
            "--token-delay",
            str(self.token_delay),
            *self.options,
        ]


@dataclass
class Storm:
    """A run: what was done, and what came of it."""

    settings: Settings
    faults: list[Fault]
    ledger: Ledger = field(default_factory=Ledger)
    happened: list[Happened] = field(default_factory=list)
    unrest: list[str] = field(default_factory=list)
    start: float = 0.0  # when the load began, on the ledger's clock

    @property
    def survived(self) -> bool:
        """Nothing broken, nothing left over, everything back."""
        return (
            not self.ledger.failures()
            and not self.unrest
            and not any(e.made and e.problem for e in self.happened)
        )


def command(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long faults go on.")] = 10.0,
    seed: Annotated[
        int | None, typer.Option(help="Repeats a run's faults and questions; default: a new one.")
    ] = None,
    people: Annotated[int, typer.Option("--users", min=1, help="Users who ask all the time.")] = 50,
    nodes: Annotated[
        int, typer.Option(min=3, help="Worker processes, besides two behind a proxy.")
    ] = 7,
    fanout: Annotated[int, typer.Option(min=1, help="Children a node at most.")] = 2,
    slots: Annotated[
        int, typer.Option(min=1, help="Answers a worker writes at the same time.")
    ] = 2,
    standby: Annotated[int, typer.Option(min=0, help="Roots that wait for the root's place.")] = 1,
    token_delay: Annotated[float, typer.Option(min=0, help="Seconds between words.")] = 0.02,
    faults_per_minute: Annotated[float, typer.Option(min=0.1, help="Faults, on average.")] = 3.0,
    kinds: Annotated[
        list[str] | None,
        typer.Option("--fault", help=f"Only such faults, repeatable: {', '.join(KINDS)}."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="A further word for canopy up, repeatable.")
    ] = None,
    keep_logs: Annotated[
        Path | None, typer.Option(help="Copy the instance's logs to this new folder.")
    ] = None,
    json_file: report.JsonOption = None,
) -> None:
    """Random faults under load: nobody's answer is lost, repeated or left hanging."""
    chosen = list(kinds or KINDS)
    if unknown := [kind for kind in chosen if kind not in KINDS]:
        raise typer.BadParameter(f"there is no fault {unknown[0]!r}; there are: {', '.join(KINDS)}")
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    settings = Settings(
        minutes, seed, people, nodes, fanout, slots, standby, token_delay, faults_per_minute, chosen, option or []
    )  # fmt: skip
    storm = Storm(settings, settings.schedule())
    result = Report("chaos", asdict(settings))
    _announce(storm)
    with instance.running(*settings.up()) as canopy:
        try:
            asyncio.run(_rage(canopy, storm))
        finally:
            if keep_logs:
                shutil.copytree(canopy.home / "logs", keep_logs)
    _tell(result, storm)
    result.finish(json_file)
    raise typer.Exit(0 if storm.survived else 1)


async def _rage(canopy: Instance, storm: Storm) -> None:
    """Users and faults at the same time, then the look at what is left."""
    settings = storm.settings
    tree = Tree.of(settings.nodes, settings.fanout)
    async with contextlib.AsyncExitStack() as opened:
        broker = await opened.enter_async_context(Management(canopy.record["management"]))
        proxies = await opened.enter_async_context(
            far.nodes(canopy, settings.slots, settings.token_delay)
        )
        reached = Service.reached(canopy.url, canopy.model, canopy.key, canopy.login)
        service = await opened.enter_async_context(reached)
        victims = Victims(canopy, broker)
        opened.push_async_callback(victims.close)
        saboteur = Saboteur(canopy, tree, victims, broker, proxies, storm.ledger)
        stop = asyncio.Event()
        storm.start = time.monotonic()
        async with asyncio.TaskGroup() as together:
            for user in users.crowd(settings.users, service, storm.ledger, settings.seed):
                together.create_task(user.ask_until(stop))
            storm.happened = await _make_all(saboteur, storm)
            say("no more faults; waiting for the last answers")
            stop.set()
        storm.unrest = await rest.problems(canopy, broker, ["root", *tree.parents])


async def _make_all(saboteur: Saboteur, storm: Storm) -> list[Happened]:
    """Every fault at its time, beside those that still go on; returns when the time is over and all have healed."""

    async def make(fault: Fault) -> Happened:
        await asyncio.sleep(max(0.0, storm.start + fault.at - time.monotonic()))
        return await saboteur.make(fault)

    happened = await asyncio.gather(*map(make, storm.faults))
    await asyncio.sleep(max(0.0, storm.start + 60 * storm.settings.minutes - time.monotonic()))
    return happened


def _announce(storm: Storm) -> None:
    say(f"seed {storm.settings.seed}; {len(storm.faults)} faults:")
    for fault in storm.faults:
        say(f"  {fault}")


def _tell(result: Report, storm: Storm) -> None:
    ledger = storm.ledger
    broken = table.failures(ledger, storm.happened, storm.start)
    result.tables += [
        table.in_order(ledger, storm.happened, storm.start),
        table.by_user(ledger),
        table.refusals(ledger),
        table.by_fault(ledger, storm.happened),
    ]
    slowest = table.slowest(ledger, storm.start)
    result.facts |= {
        "survived": storm.survived, "failures": broken, "unrest": storm.unrest, "slowest": slowest,
        "endings": {str(ending): ledger.count(ending) for ending in Ending},
        "slowest_recovery_seconds": max((table.slowest_recovery(ledger, each) for each in storm.happened), default=0.0),
        "schedule": [asdict(fault) for fault in storm.faults],
    }  # fmt: skip
    result.notes += [
        *(f"BROKEN PROMISE: {line}" for line in broken[:_SHOWN]),
        *(f"NOT AT REST: {line}" for line in storm.unrest),
        *(
            f"NOT HEALED: {each.fault}: {each.problem}"
            for each in storm.happened
            if each.made and each.problem
        ),
        *slowest,
        "accepted: an answer had begun (200, or 201 in the chat). Refused (503, 429, no connection) is not accepted.",
        "broken off: a request without Idempotency-Key whose API process was killed; its text so far was right.",
        "error: told after it had been accepted. missing: text. usage: the answer counts its tokens wrong.",
        "recovery: the longest silence of a stream that had begun and fell silent while the fault went on.",
        "a request counts with each fault that it lived through, and once in the last row.",
        f"verdict: {'nothing lost, nothing repeated, at rest' if storm.survived else 'FAILED'}; "
        f"repeat these faults with --seed {storm.settings.seed} and the same settings",
    ]
