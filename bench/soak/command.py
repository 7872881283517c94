"""`bench soak`: moderate load, one restart a minute, a sample every few seconds: is everything flat?"""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated

import psutil
import typer

from bench import instance, report
from bench.chaos import rest, table
from bench.chaos.faults import Saboteur
from bench.chaos.schedule import ROOT, Tree
from bench.chaos.victims import NotDone, NotHealed, Victims
from bench.instance import Instance
from bench.load import users
from bench.load.http import Service
from bench.load.ledger import Ledger
from bench.management import Management
from bench.report import Report, Rows, say
from bench.soak import slopes
from bench.soak.sampling import Sampler

LONG_LIFE = 300.0  # seconds: in a shorter life, noise is larger than any slope that matters
WARM_UP = 60.0
_CALM = 30.0  # seconds before the first restart
_SIGNALS = (signal.SIGKILL, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Restart:
    """One restart, `at` seconds after the load began."""

    at: float
    target: str
    signal: signal.Signals


@dataclass(frozen=True)
class Settings:
    """What was asked for. `spared`: processes that are never restarted."""

    minutes: float
    seed: int
    users: int
    nodes: int
    fanout: int
    slots: int
    token_delay: float
    restart_every: float
    sample_every: float
    spared: Sequence[str]

    def up(self) -> list[str]:
        """The options of `canopy up`."""
        words = ["--engine", "echo", "--nodes", str(self.nodes), "--fanout", str(self.fanout)]
        return [*words, "--slots", str(self.slots), "--token-delay", str(self.token_delay)]

    def restarts(self) -> list[Restart]:
        """Whom, when and how, from the seed alone."""
        names = [ROOT, "api", "broker", *(f"n{place}" for place in range(1, self.nodes + 1))]
        targets = [name for name in names if name not in self.spared]
        dice = random.Random(self.seed)
        count = max(0, int((60 * self.minutes - _CALM) / self.restart_every) + 1) if targets else 0
        moments = (_CALM + index * self.restart_every for index in range(count))
        return [Restart(at, dice.choice(targets), dice.choice(_SIGNALS)) for at in moments]


@dataclass
class Soak:
    """A run and what came of it."""

    settings: Settings
    ledger: Ledger = field(default_factory=Ledger)
    problems: list[str] = field(default_factory=list)
    restarts: dict[str, int] = field(default_factory=dict)  # process -> how often
    start: float = 0.0


def command(
    minutes: Annotated[float, typer.Option(min=0.5, help="How long.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Decides whom to restart, and the questions.")] = 1,
    people: Annotated[int, typer.Option("--users", min=1, help="Users who ask all the time.")] = 10,
    nodes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 7,
    fanout: Annotated[int, typer.Option(min=1, help="Children a node at most.")] = 2,
    slots: Annotated[
        int, typer.Option(min=1, help="Answers a worker writes at the same time.")
    ] = 2,
    token_delay: Annotated[float, typer.Option(min=0, help="Seconds between words.")] = 0.05,
    restart_every: Annotated[
        float, typer.Option(min=1, help="Seconds between two restarts.")
    ] = 60.0,
    sample_every: Annotated[
        float, typer.Option(min=0.5, help="Seconds between two samples.")
    ] = 5.0,
    spare: Annotated[
        list[str] | None, typer.Option(help="Never restart this process, repeatable.")
    ] = None,
    json_file: report.JsonOption = None,
) -> None:
    """Memory, files, threads, channels and queues over time, with a restart every minute."""
    settings = Settings(
        minutes, seed, people, nodes, fanout, slots, token_delay, restart_every, sample_every, spare or []
    )  # fmt: skip
    result = Report("soak", asdict(settings))
    soak = Soak(settings)
    with instance.running(*settings.up()) as canopy:
        sampler = asyncio.run(_run(canopy, soak))
    _tell(result, soak, sampler)
    result.finish(json_file)
    raise typer.Exit(1 if soak.ledger.failures() or soak.problems else 0)


async def _run(canopy: Instance, soak: Soak) -> Sampler:
    """Load, restarts and samples until the time is over; the last sample is of an instance at rest."""
    settings = soak.settings
    tree = Tree.of(settings.nodes, settings.fanout, far={})
    async with contextlib.AsyncExitStack() as opened:
        broker = await opened.enter_async_context(Management(canopy.record["management"]))
        service = await opened.enter_async_context(
            Service.reached(canopy.url, canopy.model, canopy.key, canopy.login)
        )
        victims = Victims(canopy, broker)
        opened.push_async_callback(victims.close)
        saboteur = Saboteur(canopy, tree, victims, broker, {}, soak.ledger)
        sampler = Sampler(canopy, broker)
        sampling = asyncio.create_task(sampler.sample_every(settings.sample_every))
        soak.start = time.monotonic()
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as together:
            for user in users.crowd(settings.users, service, soak.ledger, settings.seed):
                together.create_task(user.ask_until(stop))
            await _restart_all(saboteur, soak)
            stop.set()
        sampling.cancel()
        await asyncio.wait([sampling])
        soak.problems += await rest.problems(canopy, broker, [ROOT, *tree.parents])
        await sampler.sample()
    return sampler


async def _restart_all(saboteur: Saboteur, soak: Soak) -> None:
    """One after the other: the next one waits until the last one is back."""
    for each in soak.settings.restarts():
        await asyncio.sleep(max(0.0, soak.start + each.at - time.monotonic()))
        say(f"{each.at:6.0f} s  {each.signal.name} {each.target}")
        soak.restarts[each.target] = soak.restarts.get(each.target, 0) + 1
        try:
            await saboteur.restart(each.target, each.signal)
        except (NotDone, NotHealed, psutil.Error) as error:
            soak.problems.append(f"{each.at:.0f} s, {each.signal.name} {each.target}: {error}")
    await asyncio.sleep(max(0.0, soak.start + 60 * soak.settings.minutes - time.monotonic()))


def _tell(result: Report, soak: Soak, sampler: Sampler) -> None:
    shortest = min(LONG_LIFE, 60 * soak.settings.minutes / 3)
    lives = list(sampler.lives)
    broken = table.failures(soak.ledger, [], soak.start)
    result.tables += [
        slopes.of_processes(lives, shortest, min(WARM_UP, shortest / 3)),
        slopes.of_broker(sampler.broker),
        table.by_user(soak.ledger),
        table.refusals(soak.ledger),
        Rows("restarts", ("process", "times"), list(soak.restarts.items())),
    ]
    result.facts |= {
        "failures": broken, "problems": soak.problems, "samples_without_broker": sampler.missed,
        "processes": [{"name": life.name, "pid": life.pid, "series": life.series} for life in lives],
        "broker": sampler.broker,
    }  # fmt: skip
    result.notes += [
        *(f"BROKEN PROMISE: {line}" for line in broken),
        *(f"PROBLEM: {line}" for line in soak.problems),
        "slope: least squares within lives, one slope for all lives of a kind; steepest life: the same for one alone.",
        "latter half: of each life. A leak is as steep there as before, a cache that fills is not; memory of a process "
        "that lived for 20 minutes says little about either: --spare NAME gives it a whole run.",
        f"a sample every {soak.settings.sample_every:g} s; the broker's figures are up to 5 s old, and it gave none "
        f"{sampler.missed} times. Tasks of event loops are not counted: no process tells them.",
    ]
