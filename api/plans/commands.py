"""`python -m api plan …`: plans from the command line (`./canopy plan`)."""

import argparse
import json
import sys
from functools import partial
from typing import Any

from api.plans.limits import LIMITS

_NO_LIMIT = "none"
_MOST = {"tokens_per_day": 10**15}  # of the rest 10**9: as the API has them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions below `plan`."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list")
    for action in ("create", "set"):
        change = actions.add_parser(action)
        change.add_argument("name")
        for name in LIMITS:
            limit = partial(_limit, most=_MOST.get(name, 10**9))
            change.add_argument(f"--{name.replace('_', '-')}", type=limit, metavar="N")
        change.add_argument("--default", action="store_true", help="for users without a plan")
    assign = actions.add_parser("assign")
    assign.add_argument("user")
    assign.add_argument("plan", nargs="?", help="default: the default plan")
    actions.add_parser("remove").add_argument("name")


def run(options: argparse.Namespace) -> int:
    """Runs one action on a migrated database; returns the exit status."""
    from api.plans import store

    try:
        match options.action:
            case "list":
                _print_list(options.json)
            case "create" | "set":
                _put(options)
            case "assign":
                store.assign(options.user, options.plan)
                plan = options.plan or "the default plan"
                _say("assign plan", options.user, plan, f"{options.user} has {plan}", options.json)
            case _:
                store.remove(options.name)
                _say("remove plan", options.name, "", f"{options.name} is removed", options.json)
    except store.PlanError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _limit(text: str, most: int) -> int | str:
    """A number from 1 to `most`, or `none`."""
    if text == _NO_LIMIT:
        return text
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text[:20]) <= most:
        message = f"must be a number from 1 to {most}, or none, not {text[:50]!r}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _put(options: argparse.Namespace) -> None:
    from api.accounts.models import Plan
    from api.plans import store

    exists = Plan.objects.filter(name=options.name).exists()
    if options.action == "create" and exists:
        raise store.PlanError(f"there is a plan {options.name!r} already; ./canopy plan set")
    if options.action == "set" and not exists:
        raise store.PlanError(f"there is no plan {options.name!r}; ./canopy plan create")
    changes: dict[str, int | None] = {}
    for name in LIMITS:
        value = getattr(options, name)
        if value is not None:
            changes[name] = None if value == _NO_LIMIT else value
    row = store.put(options.name, changes, True if options.default else None)
    limits = _described(store.as_json(row))
    _say("set plan", row.name, limits, f"{row.name}: {limits}", options.json)


def _say(action: str, target: str, detail: str, text: str, as_json: bool) -> None:
    from api.operate.audit.record import record_command

    record_command(action, target, detail)
    print(json.dumps({"done": text}) if as_json else f"{text} (running processes: within 10 s)")


def _print_list(as_json: bool) -> None:
    from api.plans import store

    plans = store.listed()
    if as_json:
        print(json.dumps({"plans": plans}))
        return
    for plan in plans:
        mark = " (default)" if plan["default"] else ""
        print(f"{plan['name']}{mark}: {_described(plan)}; users {plan['users']}")
    if not plans:
        print("There are no plans: nobody is limited.")


def _described(plan: dict[str, Any]) -> str:
    limits = [f"{name} {plan[name]}" for name in LIMITS if plan[name] is not None]
    return ", ".join(limits).replace("_", " ") or "no limits"
