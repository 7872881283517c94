"""`python -m api drill`: kill a node on purpose, or list the latest drills."""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from api.operate.drills.conductor import Conductor
    from api.operate.drills.models import Drill
    from api.operate.drills.plan import Plan
    from api.tree.watch import TreeWatch
    from broker.client import Client
    from broker.drill_messages import DrillCounts

    Connected = Callable[[], AbstractAsyncContextManager[tuple[Client, TreeWatch]]]

SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--preview", action="store_true")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("node", nargs="?")
    parser.set_defaults(action="")


async def run(options: argparse.Namespace, connected: "Connected") -> None:
    """Kills the node and tells the result; without one, lists. Raises ApiError, CommandError."""
    if options.node is None:
        await _list(options.json)
        return
    from api.operate.drills.conductor import Conductor
    from api.operate.hosts.hosts import Hosts

    async with connected() as (client, tree):
        conductor = Conductor(client, tree, Hosts(client, tree))
        if options.preview:
            _say_plan(await conductor.plan(options.node), options.json)
        else:
            await _kill(conductor, options)


async def _list(as_json: bool) -> None:
    from api.operate.drills import store

    drills = await store.latest(SHOWN)
    if as_json:
        print(json.dumps({"drills": [_document(drill) for drill in drills]}))
        return
    for drill in drills:
        print(f"{drill.began:%Y-%m-%d %H:%M:%S}  {drill.node}  {drill.by}  {text_of(drill)}")
    if not drills:
        print("No drill has been held (./canopy drill NODE holds one).")


def _say_plan(plan: "Plan", as_json: bool) -> None:
    from api.operate.commands import CommandError
    from api.operate.drills import schemas

    if as_json:
        print(schemas.drill_plan(plan).model_dump_json())
        return
    if plan.refusal:
        raise CommandError(plan.refusal)
    print(
        f"The process of {plan.node} on {plan.host} would be killed at once: "
        f"{len(plan.running)} running jobs would go on elsewhere, and {plan.waiting_count} "
        "that wait inside it would be handed on; then it is started again."
    )
    for job in plan.running:
        print(f"  {job.request_id}  {job.user}  {job.seconds:.0f} s  {job.tokens} tokens")


async def _kill(conductor: "Conductor", options: argparse.Namespace) -> None:
    from api.operate.audit.store import begin_command, command_user
    from api.operate.commands import CommandError
    from api.operate.drills.models import State

    entry = await begin_command("drill", options.node)
    try:
        drill = await conductor.start(command_user(), options.node, options.seconds, entry)
        await conductor.settled(_Progress().show)
    finally:
        await conductor.stop()
    if drill.state != State.DONE:
        raise CommandError(f"the drill's result is not known: {drill.note}")
    print(json.dumps(_document(drill)) if options.json else text_of(drill))
    if drill.lost:
        raise CommandError(f"{drill.lost} jobs were lost")


class _Progress:
    """Says on standard error what has changed."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, counts: "DrillCounts", seconds: float) -> None:
        """Called again and again while the drill lasts."""
        going = counts.moved + counts.returned
        line = f"{counts.affected} jobs affected, {going} go on, {counts.open} wait for a node"
        if line != self._shown:
            self._shown = line
            print(f"{seconds:5.1f} s  {line}", file=sys.stderr, flush=True)


def text_of(drill: "Drill") -> str:
    """The result on one line."""
    from api.operate.drills.models import State
    from api.operate.drills.plan import sentence

    if drill.state == State.FAILED:
        return f"failed: {drill.note}"
    said = sentence(drill, drill.back)
    if drill.state == State.RUNNING:
        return f"goes on: {said}"
    return said


def _document(drill: "Drill") -> dict[str, object]:
    from api.operate.drills import schemas

    document: dict[str, object] = schemas.result(drill).model_dump(mode="json")
    return document
