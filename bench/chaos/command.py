"""`bench chaos`: users ask all the time while things break, by a schedule that a seed decides.

Every request is followed to its end (ledger.py). The run fails if one was lost, had text twice or
missing, or got an error after it had been accepted, and if the tree is not at rest afterwards.
"""

import asyncio
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from bench import harness, report
from bench.chaos import growth, schedule, tables, users
from bench.chaos.broker import Broker
from bench.chaos.faults import Incident, Saboteur
from bench.chaos.growth import Life
from bench.chaos.ledger import Ending, Ledger
from bench.chaos.schedule import KINDS, Fault, Tree
from bench.chaos.service import Service
from bench.harness import Instance
from bench.report import Report, say

_SHOWN = 30  # failures that are printed; the rest is in the JSON


@dataclass
class Run:
    """A run: its plan, and what came of it."""

    seconds: float
    seed: int
    users: int
    tree: Tree
    faults: Sequence[Fault]
    ledger: Ledger = field(default_factory=Ledger)
    incidents: list[Incident] = field(default_factory=list)
    unrest: list[str] = field(default_factory=list)
    lives: dict[int, Life] = field(default_factory=dict)
    start: float = 0.0  # when the load began, by time.monotonic

    @property
    def survived(self) -> bool:
        """No promise broken, nothing left over, everything back."""
        return not self.ledger.failures() and not self.unrest and not self.not_healed

    @property
    def not_healed(self) -> list[str]:
        """Faults whose victims did not come back."""
        failed = [each for each in self.incidents if each.injected and each.problem]
        return [f"{incident.fault}: {incident.problem}" for incident in failed]


def command(
    seconds: Annotated[
        float | None, typer.Option(min=5, help="How long faults go on; default 600, --soak 3600.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Repeats a run's faults and questions; default: a new one.")
    ] = None,
    people: Annotated[int, typer.Option("--users", min=1, help="Users who ask all the time.")] = 50,
    nodes: Annotated[int, typer.Option(min=3, help="Worker processes.")] = 7,
    fanout: Annotated[int, typer.Option(min=1, help="Children of a node at most.")] = 2,
    slots: Annotated[int, typer.Option(min=1, help="Slots of a worker.")] = 2,
    standby: Annotated[int, typer.Option(min=0, help="Roots that wait for the root's place.")] = 1,
    token_delay: Annotated[float, typer.Option(min=0, help="Seconds between words.")] = 0.02,
    faults_per_minute: Annotated[float, typer.Option(min=0.1, help="Faults, on average.")] = 3.0,
    kinds: Annotated[
        list[str] | None,
        typer.Option("--fault", help=f"Only such faults, repeatable: {', '.join(KINDS)}."),
    ] = None,
    soak: Annotated[
        bool, typer.Option("--soak", help="A long run with a kill a minute: what grows?")
    ] = False,
    keep_logs: Annotated[
        Path | None, typer.Option(help="Copy the instance's logs to this new folder.")
    ] = None,
    json_file: report.JsonOption = None,
) -> None:
    """Random faults under load: no answer is lost, repeated or left hanging."""
    chosen = kinds or list(KINDS)
    seconds = seconds or (3600.0 if soak else 600.0)
    if soak:
        faults_per_minute = 1.0
        chosen = kinds or [kind for kind in KINDS if kind.startswith("kill")]
    for kind in chosen:
        if kind not in KINDS:
            message = f"there is no fault {kind!r}; there are: {', '.join(KINDS)}"
            raise typer.BadParameter(message, param_hint="--fault")
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    tree = Tree.of(nodes, fanout)
    faults = schedule.make(seed, seconds, faults_per_minute, tree, chosen)
    run = Run(seconds, seed, people, tree, faults)
    settings = {"seconds": seconds, "seed": seed, "users": people, "token_delay": token_delay}
    result = Report("chaos", settings | {"nodes": nodes, "fanout": fanout, "slots": slots})
    say(f"seed {seed}; {len(faults)} faults:")
    for fault in faults:
        say(f"  {fault}")
    options = {"nodes": nodes, "fanout": fanout, "slots": slots, "standby": standby}
    words = ["--engine", "echo", "--token-delay", str(token_delay)]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    with harness.running(*words) as canopy:
        try:
            asyncio.run(_run(canopy, run))
        finally:
            if keep_logs:
                shutil.copytree(canopy.home / "logs", keep_logs)
    _fill(result, run)
    if soak:
        result.tables.append(growth.table(list(run.lives.values()), seconds))
        result.facts["processes"] = [asdict(life) for life in run.lives.values()]
    result.finish(json_file)
    raise typer.Exit(0 if run.survived else 1)


async def _run(canopy: Instance, run: Run) -> None:
    """Users and faults at the same time, then a look at what is left."""
    async with (
        Broker(canopy.record["management"]) as broker,
        Service.of(canopy) as service,
        Saboteur(canopy, run.tree, broker, run.ledger) as saboteur,
    ):
        stop = asyncio.Event()
        run.start = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            sampling = tasks.create_task(growth.sample(canopy, run.lives))
            for user in users.make(run.users, service, run.ledger, run.seed):
                tasks.create_task(user.ask_until(stop))
            injections = [_inject(saboteur, run, fault) for fault in run.faults]
            run.incidents = await asyncio.gather(*injections)
            await _sleep_until(run.start + run.seconds)
            say("no more faults; waiting for the last answers")
            stop.set()
            sampling.cancel()
        run.unrest = await saboteur.unrest()


async def _inject(saboteur: Saboteur, run: Run, fault: Fault) -> Incident:
    await _sleep_until(run.start + fault.at)
    return await saboteur.inject(fault)


async def _sleep_until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


def _fill(result: Report, run: Run) -> None:
    ledger = run.ledger
    broken = tables.failures(ledger, run.incidents, run.start)
    recoveries = [tables.recovery(ledger, incident) for incident in run.incidents]
    result.tables += [
        tables.in_order(ledger, run.incidents, run.start),
        tables.by_fault(ledger, run.incidents),
    ]
    result.facts |= {
        "survived": run.survived,
        "failures": broken,
        "unrest": run.unrest,
        "refusals": dict(ledger.refusals.most_common()),
        "endings": {str(ending): ledger.count(ending) for ending in Ending},
        "slowest_recovery_seconds": max(recoveries, default=0.0),
        "schedule": [asdict(fault) for fault in run.faults],
    }
    verdict = "nothing lost, nothing repeated, at rest" if run.survived else "FAILED"
    result.notes += [
        *(f"BROKEN PROMISE: {line}" for line in broken[:_SHOWN]),
        *(f"NOT AT REST: {line}" for line in run.unrest),
        *(f"NOT HEALED: {line}" for line in run.not_healed),
        "accepted: an answer had begun. Refused (503, 429, no connection) is not accepted.",
        "broken off: without Idempotency-Key, its API process killed; its text so far was right.",
        "error: after it had been accepted. missing: text. usage: tokens counted wrong.",
        "recovery: the longest silence of a running stream that began while the fault went on.",
        "a request counts with each fault that it lived through, and once in the last row.",
        f"verdict: {verdict}; repeat these faults with --seed {run.seed} and the same settings",
    ]
