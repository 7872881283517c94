"""`bench chaos`: users ask while things break; ledger.py follows every request."""

import asyncio
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import httpx

from bench import harness, options
from bench.chaos import growth, schedule
from bench.chaos.faults import Incident, Saboteur
from bench.chaos.ledger import FAILURES, Ending, Ledger
from bench.chaos.schedule import FANOUT, KILLS, KINDS, NODES, Fault
from bench.chaos.users import PATIENCE, User
from bench.harness import Instance
from bench.report import Report, Row, Table, say

# After the last fault, by when everything must have ended: longer than a user's patience.
LAST_SECONDS = PATIENCE + 30.0
_SHOWN = 30  # failures that are printed; the rest is in the JSON
_KIND = click.Choice(list(KINDS))
_FOLDER = click.Path(file_okay=False, path_type=Path)


@dataclass
class Run:
    """What is done, and what came of it. `start`: of the load, by time.monotonic."""

    seconds: float = 0.0
    seed: int = 0
    users: int = 0
    faults: list[Fault] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    incidents: list[Incident] = field(default_factory=list)
    unrest: list[str] = field(default_factory=list)
    lives: growth.Lives = field(default_factory=dict)
    start: float = 0.0


@click.command
@click.option("--seconds", type=click.FloatRange(min=5), help="600; with --soak 3600.")
@click.option("--seed", type=int, help="Repeats a run's faults and questions.")
@click.option("--users", type=options.COUNT, default=50, help="Users who ask all the time.")
@click.option("--fault", "kinds", type=_KIND, multiple=True, help="Only such ones; repeatable.")
@click.option("--soak", is_flag=True, help="A long run with a kill a minute: what grows?")
@click.option("--keep-logs", type=_FOLDER, help="Copy the instance's logs there.")
@options.json_file
def command(
    seconds: float | None,
    seed: int | None,
    users: int,
    kinds: tuple[str, ...],
    soak: bool,
    keep_logs: Path | None,
    json_file: Path | None,
) -> None:
    """Random faults under load: no answer is lost, repeated or left hanging."""
    usual_seconds, faults_per_minute, usual_kinds = 600.0, 3.0, tuple(KINDS)
    if soak:
        usual_seconds, faults_per_minute, usual_kinds = 3600.0, 1.0, KILLS
    if seed is None:
        seed = random.SystemRandom().randrange(10**6)
    run = Run(seconds or usual_seconds, seed, users)
    run.faults = schedule.make(seed, run.seconds, faults_per_minute, kinds or usual_kinds)
    result = Report("chaos", {"seconds": run.seconds, "seed": seed, "users": users})
    say(f"seed {seed}; {len(run.faults)} faults:")
    for fault in run.faults:
        say(f"  {fault}")
    words = ["--engine", "echo", "--token-delay", "0.02", "--slots", "2"]
    words += ["--nodes", str(NODES), "--fanout", str(FANOUT), "--standby", "1"]
    with harness.running(*words, keep_logs=keep_logs) as canopy:
        asyncio.run(_run(canopy, run))
    problems = fill(result, run)
    if soak:
        result.tables.append(growth.table(run.lives, run.seconds))
    result.finish(json_file)
    raise SystemExit(bool(problems))


async def _run(canopy: Instance, run: Run) -> None:
    """Users and faults at the same time, then a look at what is left."""
    key = {"Authorization": f"Bearer {canopy.key}"}
    many = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    client = httpx.AsyncClient(base_url=canopy.url, headers=key, limits=many, trust_env=False)
    async with client as http:
        saboteur = Saboteur(canopy, run.ledger, http)
        stop = asyncio.Event()
        run.start = time.monotonic()

        async def inject(fault: Fault) -> None:
            await asyncio.sleep(run.start + fault.at - time.monotonic())
            run.incidents.append(await saboteur.inject(fault))

        try:
            async with asyncio.timeout(run.seconds + LAST_SECONDS), asyncio.TaskGroup() as tasks:
                sampling = tasks.create_task(growth.sample(canopy, run.lives))
                for number in range(run.users):
                    rng = random.Random(f"{run.seed}/{number}")
                    user = User(number, http, canopy.model, run.ledger, rng)
                    tasks.create_task(user.ask_until(stop))
                await asyncio.gather(*map(inject, run.faults))
                await asyncio.sleep(run.start + run.seconds - time.monotonic())
                say("no more faults; waiting for the last answers")
                stop.set()
                sampling.cancel()
        except TimeoutError:
            run.unrest = unfinished(run)
        run.incidents.sort(key=lambda incident: incident.began)
        run.unrest += await saboteur.unrest()


def unfinished(run: Run) -> list[str]:
    """What had not ended when time was up, one line each; open requests count as lost."""
    now = time.monotonic()
    healed = [incident.fault for incident in run.incidents]
    lines = [f"{fault} has not healed" for fault in run.faults if fault not in healed]
    for request in run.ledger.requests:
        if request.ending is None:
            request.end(now, Ending.LOST, "still open when time was up")
    return lines


def fill(result: Report, run: Run) -> list[str]:
    """Adds tables, notes and facts. Returns what went wrong."""
    rows: list[Row] = []
    for incident in run.incidents:
        row: dict[str, object] = {"at s": incident.began - run.start}
        row["fault"] = f"{incident.fault.kind} {incident.fault.target}"
        row["over after s"] = incident.ended - incident.began
        row["recovery s"] = run.ledger.longest_silence(incident.began, incident.ended)
        rows.append(row | {"problem": incident.problem or "-"})
    result.tables.append(Table("the faults in order", rows, digits=1))
    endings = run.ledger.endings()
    result.tables.append(Table("how requests ended", [endings]))
    problems = broken(run)
    recoveries = [row["recovery s"] for row in rows]
    result.facts |= {"endings": endings, "problems": problems, "recoveries": recoveries}
    result.facts["schedule"] = [asdict(fault) for fault in run.faults]
    result.notes += problems[:_SHOWN]
    verdict = "FAILED" if problems else "nothing lost, nothing repeated, at rest"
    result.notes += [
        f"verdict: {verdict}; repeat these faults with --seed {run.seed} and the same settings",
        "recovery: the longest silence of a running stream that began while the fault went on.",
    ]
    return problems


def broken(run: Run) -> list[str]:
    """Promises broken, and what is not as before."""
    lines = []
    for request in run.ledger.requests:
        if request.ending in FAILURES:
            name = f"{request.ending}: {request.kind} {request.request_id}"
            began, ended = request.began - run.start, request.ended - run.start
            lines.append(f"BROKEN PROMISE: {name}, {began:.1f}-{ended:.1f} s, {request.note}")
    for incident in run.incidents:
        if incident.injected and incident.problem:
            lines.append(f"NOT HEALED: {incident.fault}: {incident.problem}")
    lines += [f"NOT AT REST: {line}" for line in run.unrest]
    return lines
