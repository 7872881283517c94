"""`python -m api jobs | model | audit …`: the line and the audit log from the command line."""

import argparse
import asyncio
import json
import sys
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from api.operate.line.view import LineView, Running, Waiting
    from broker.job_messages import AnyQuestion
    from broker.job_watch import JobWatch
    from broker.session import Session

COMMANDS = ("jobs", "model", "audit")
ASKED = {"number": "", "reply_to": ""}  # the broker's side fills them in


class CommandError(Exception):
    """One line for the operator: why a command did nothing."""


def add_arguments(commands: Any) -> None:
    """Adds the commands to those of `python -m api`."""
    jobs = commands.add_parser("jobs", help="what waits and runs, and what to do with it")
    jobs.add_argument("--json", action="store_true")
    actions = jobs.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list")
    listing.add_argument("--user")
    listing.add_argument("--id", default="")
    listing.add_argument("--limit", type=int, default=100)
    for name in ("show", "cancel", "move", "class"):
        actions.add_parser(name).add_argument("request_id")
    actions.choices["show"].add_argument("--prompt", action="store_true")
    actions.choices["move"].add_argument("--before", choices=("class", "all"), default="class")
    actions.choices["class"].add_argument("job_class", choices=("interactive", "batch"))
    actions.add_parser("prompts").add_argument("allowed", choices=("yes", "no"), nargs="?")

    model = commands.add_parser("model", help="pause a model's intake")
    model.add_argument("--json", action="store_true")
    model.add_argument("--no-broker", action="store_true", help="no instance runs")
    actions = model.add_subparsers(dest="action", required=True)
    actions.add_parser("paused")
    for name in ("pause", "resume"):
        actions.add_parser(name).add_argument("name")
    actions.choices["pause"].add_argument("--reason", default="")

    audit = commands.add_parser("audit", help="what operators did")
    audit.add_argument("--json", action="store_true")
    for name in ("--who", "--of", "--text"):
        audit.add_argument(name, default="")
    audit.add_argument("--limit", type=int, default=50)


def run(options: argparse.Namespace) -> int:
    """Runs one of them on a migrated database; returns the exit status."""
    from api.errors import ApiError
    from broker.errors import BrokerError

    try:
        asyncio.run(_run(options))
    except (CommandError, ApiError, BrokerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def _run(options: argparse.Namespace) -> None:
    match options.command, options.action if options.command != "audit" else "":
        case "audit", _:
            await _audit(options)
        case "model", _:
            await _model(options)
        case _, "list":
            await _list(options)
        case _, "show":
            await _show(options)
        case _, "prompts":
            await _prompts(options)
        case _:
            await _act(options)


# ---- jobs


async def _list(options: argparse.Namespace) -> None:
    line = await _find(options.id, options.user, options.limit)
    if options.json:
        print(json.dumps(line.model_dump()))
        return
    for row in line.running:
        print(running_text(row))
    for waiting in line.waiting:
        print(waiting_text(waiting))
    for total in line.models:
        print(f"{total.model}: {total.running} running, {total.waiting} waiting")
    if not line.models:
        print("No job waits or runs.")


async def _show(options: argparse.Namespace) -> None:
    line = await _find(options.request_id, None, 10)
    rows: list[Running | Waiting] = [*line.running, *line.waiting]
    rows = [row for row in rows if row.request_id == options.request_id]
    if not rows:
        raise CommandError(f"no node has the job {options.request_id!r} (./canopy jobs list)")
    shown = rows[0].model_dump()
    if options.prompt:
        shown["prompt"] = await _look_at_prompt(options.request_id)
    if options.json:
        print(json.dumps(shown))
        return
    for name, value in shown.items():
        text = " > ".join(value) if isinstance(value, list) else value
        print(f"{name:<12} {_printable(text)}")


async def _look_at_prompt(request_id: str) -> str:
    from api.operate.line import prompts
    from broker.job_messages import ShowPrompt

    async with recorded("look at prompt", request_id):
        await prompts.require()
        answer = await _ask(ShowPrompt(**ASKED, request_id=request_id), request_id)
    return answer.prompt or ""


async def _act(options: argparse.Namespace) -> None:
    from broker.job_messages import CancelJob, ChangeClass, MoveJob

    common: dict[str, Any] = {**ASKED, "request_id": options.request_id}
    question: AnyQuestion
    detail = ""
    match options.action:
        case "cancel":
            action, question = "cancel job", CancelJob(**common)
        case "move":
            action, question = "move job up", MoveJob(**common, before=options.before)
            detail = f"before its {options.before}"
        case _:
            action = "change job class"
            question = ChangeClass(**common, job_class=options.job_class)
            detail = options.job_class
    async with recorded(action, options.request_id, detail):
        answer = await _ask(question, options.request_id)
    outcome = {"request_id": options.request_id, "node": answer.node, "note": answer.note}
    if options.json:
        print(json.dumps(outcome))
    else:
        print(f"{options.request_id} at {answer.node}: {answer.note}")


async def _prompts(options: argparse.Namespace) -> None:
    from api.operate.line import prompts

    if options.allowed is not None:
        async with recorded("let operators see prompts", options.allowed):
            await prompts.allow(options.allowed == "yes", _who())
    allowed = await prompts.allowed()
    if options.json:
        print(json.dumps({"allowed": allowed}))
    elif allowed:
        print("operators may see prompts; each look is in the audit log")
    else:
        print("operators do not see prompts")


async def _find(request_id: str, user: str | None, limit: int) -> "LineView":
    from api.operate.line import actions
    from api.operate.line.intake import stored
    from api.operate.line.view import with_pauses
    from broker.job_messages import MAX_LISTED

    limit = max(0, min(limit, MAX_LISTED))
    async with _nodes() as watch:
        found = await actions.find(watch, request_id, user, limit)
    return with_pauses(found, await stored())


async def _ask(question: "AnyQuestion", request_id: str) -> Any:
    from api.operate.line import actions

    async with _nodes() as watch:
        return await actions.act(watch, question, request_id)


def running_text(row: "Running") -> str:
    """One running job on a line."""
    speed = row.tokens / row.seconds if row.seconds else 0.0
    return (
        f"{_printable(row.request_id)}  running  {_printable(row.user):<12}  {row.job_class:<11}  "
        f"{' > '.join(row.trail)}  {row.seconds:.0f} s  {row.tokens} tokens  {speed:.1f}/s"
    )


def waiting_text(row: "Waiting") -> str:
    """One waiting job on a line."""
    start = "start unknown"
    if row.starts_in is not None:
        start = f"starts in {row.starts_in:.0f} s"
    return (
        f"{_printable(row.request_id)}  waiting  {_printable(row.user):<12}  {row.job_class:<11}  "
        f"{row.node} #{row.position}  {row.age:.0f} s  {start}"
    )


# ---- models


async def _model(options: argparse.Namespace) -> None:
    from api.operate.line import intake

    if options.action == "paused":
        _print_paused(await intake.stored(), options.json)
        return
    async with recorded(f"{options.action} model", options.name, getattr(options, "reason", "")):
        if options.action == "pause":
            await intake.store_pause(options.name, options.reason, _who())
        elif not await intake.store_resume(options.name):
            raise CommandError(f"{options.name} is not paused (./canopy model paused)")
    announced = options.no_broker or await _announce(intake.SETTING)
    if options.json:
        _print_paused(await intake.stored(), True)
        return
    state = "takes no new requests; what waits goes on"
    if options.action == "resume":
        state = "takes requests again"
    if not announced:
        state += " (no broker answers now: a running instance hears of it when it is back)"
    print(f"{options.name} {state}")


def _print_paused(paused: dict[str, str], as_json: bool) -> None:
    if as_json:
        models = [{"model": model, "reason": reason} for model, reason in paused.items()]
        print(json.dumps({"paused": models}))
        return
    for model, reason in paused.items():
        print(f"{_printable(model)}  {_printable(reason)}".rstrip())
    if not paused:
        print("No model is paused.")


async def _announce(setting: str) -> bool:
    """Tells the API processes; False if the broker does not answer, or nobody listens."""
    from broker.announcements import announce_once
    from broker.errors import BrokerError

    try:
        async with _session() as session:
            return await announce_once(session, setting)
    except BrokerError:
        return False


# ---- the audit log


async def _audit(options: argparse.Namespace) -> None:
    from api.operate.audit import store
    from api.operate.audit.endpoints import LONGEST_PAGE

    selection = store.Selection(who=options.who, action=options.of, text=options.text)
    page = await store.page(selection, None, max(1, min(options.limit, LONGEST_PAGE)))
    if options.json:
        entries = [
            {
                "id": entry.pk,
                "when": entry.when.isoformat(),
                "who": entry.who,
                "action": entry.action,
                "target": entry.target,
                "detail": entry.detail,
                "result": entry.result,
            }
            for entry in page.entries
        ]
        print(json.dumps({"entries": entries}))
        return
    for entry in page.entries:
        words = [entry.who, entry.action, entry.target, entry.detail, f"({entry.result})"]
        text = "  ".join(filter(None, words))
        print(f"{entry.when:%Y-%m-%d %H:%M:%S}  {_printable(text)}")
    if not page.entries:
        print("Nothing is recorded.")


@asynccontextmanager
async def recorded(action: str, target: str, detail: str = "") -> "AsyncIterator[None]":
    """Records what somebody on this machine does, with its result."""
    from asgiref.sync import sync_to_async

    from api.errors import ApiError
    from api.operate.audit.record import DONE, record_command

    write = sync_to_async(record_command)
    try:
        yield
    except (ApiError, CommandError) as error:
        await write(action, target, detail, result=str(error))
        raise
    await write(action, target, detail, result=DONE)


# ---- the nodes


class _Present:
    """The nodes that the broker says are connected."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def names(self) -> set[str]:
        return set(self._names)

    def knows(self, name: str) -> bool:
        return name in self._names


@asynccontextmanager
async def _session() -> "AsyncIterator[Session]":
    from api.settings import ENV
    from broker.amqp import AmqpSession

    session = await AmqpSession.open(ENV.amqp_url, "canopy command", queue_type=ENV.queue_type)
    try:
        yield session
    finally:
        await session.close()


@asynccontextmanager
async def _nodes() -> "AsyncIterator[JobWatch]":
    """A way to ask every node that is connected."""
    from api.settings import ENV
    from broker.errors import ManagementError
    from broker.job_watch import JobWatch
    from broker.management import edges

    if not ENV.management_url:
        raise CommandError("which nodes there are is unknown: set CANOPY_MANAGEMENT_URL")
    try:
        present = (await edges(ENV.management_url)).present
    except ManagementError as error:
        raise CommandError(str(error)) from error
    async with _session() as session:
        watch = JobWatch(f"command-{uuid.uuid4().hex[:8]}", _Present(present))
        await watch.open(session)
        yield watch


def _who() -> str:
    from api.operate.audit.store import command_user

    return command_user()


def _printable(value: object) -> str:
    """Without control characters: most text comes from elsewhere and goes to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(value))
