"""`plan`: what users may ask for, changed by the API's own program, running or not."""

from collections.abc import Callable
from typing import Any, NoReturn

import click

from cli import home as homes
from cli import options
from cli.home import become_module

_LIMITS = {
    "requests_per_minute": "Requests a minute.",
    "tokens_per_day": "Tokens a day, of prompts and answers.",
    "jobs_running": "Jobs of one model that run at once; further ones wait.",
    "jobs_waiting": "Jobs of one model that wait.",
    "conversations": "Conversations on the chat page.",
    "streams": "Streams of one answer, at each API process.",
}


def _limits(command: Callable[..., None]) -> Callable[..., None]:
    for name, text in reversed(_LIMITS.items()):
        option = click.option(f"--{name.replace('_', '-')}", name, metavar="N", help=text)
        command = option(command)
    return command


@click.command("create")
@click.argument("name")
@_limits
@click.option("--default", is_flag=True, help="The plan of all users without one.")
@options.as_json
def create(name: str, default: bool, as_json: bool, **limits: str | None) -> None:
    """Make a plan; what is left out is no limit."""
    _put("create", name, default, as_json, limits)


@click.command("set")
@click.argument("name")
@_limits
@click.option("--default", is_flag=True, help="The plan of all users without one.")
@options.as_json
def set_plan(name: str, default: bool, as_json: bool, **limits: str | None) -> None:
    """Change a plan's limits; N may be none."""
    _put("set", name, default, as_json, limits)


@click.command("list")
@options.as_json
def list_plans(as_json: bool) -> None:
    """List the plans, with the number of their users."""
    _become(["list"], as_json)


@click.command("assign")
@click.argument("user")
@click.argument("plan", required=False)
@options.as_json
def assign(user: str, plan: str | None, as_json: bool) -> None:
    """Give somebody a plan; without PLAN the default one."""
    _become(["assign", user, *([plan] if plan else [])], as_json)


@click.command("remove")
@click.argument("name")
@options.as_json
def remove(name: str, as_json: bool) -> None:
    """Remove a plan; its users get the default one."""
    _become(["remove", name], as_json)


def _put(action: str, name: str, default: bool, as_json: bool, limits: dict[str, Any]) -> None:
    words = [action, name]
    for limit, value in limits.items():
        if value is not None:
            words += [f"--{limit.replace('_', '-')}", value]
    if default:
        words.append("--default")
    _become(words, as_json)


def _become(words: list[str], as_json: bool) -> NoReturn:
    flags = ["--json"] if as_json else []
    become_module("api", "plan", *flags, *words, CANOPY_HOME=str(homes.read().path))
