"""`jobs`, `model`, `audit`: the line, a model's intake and the audit log, by the API's program.

What is done here is recorded in the audit log like what is done on the page.
"""

from typing import NoReturn

import click

from cli import home as homes
from cli import options, registry
from cli.errors import CliError
from cli.home import become_module

_id = click.argument("request_id", metavar="ID")


@click.command("list")
@click.option("--user", help="Only this user's.")
@click.option("--id", "request_id", metavar="PREFIX", help="Only those whose ids begin so.")
@click.option("--limit", default=100, show_default=True, help="Waiting jobs of each node.")
@options.as_json
def list_jobs(user: str | None, request_id: str | None, limit: int, as_json: bool) -> None:
    """List what runs and what waits."""
    words = ["--limit", str(limit)]
    if user:
        words += ["--user", user]
    if request_id:
        words += ["--id", request_id]
    _become("jobs", ["list", *words], as_json)


@click.command("show")
@_id
@click.option("--prompt", is_flag=True, help="Also what it asks, if that is allowed; recorded.")
@options.as_json
def show(request_id: str, prompt: bool, as_json: bool) -> None:
    """Show one job: where it is, whose, since when."""
    words = ["show", request_id]
    if prompt:
        words.append("--prompt")
    _become("jobs", words, as_json)


@click.command("cancel")
@_id
@options.as_json
def cancel(request_id: str, as_json: bool) -> None:
    """End a job wherever it is; its reader hears why."""
    _become("jobs", ["cancel", request_id], as_json)


@click.command("move")
@_id
@click.option(
    "--before",
    type=click.Choice(["class", "all"]),
    default="class",
    show_default=True,
    help="The others of its class, or all: then it becomes an interactive job.",
)
@options.as_json
def move(request_id: str, before: str, as_json: bool) -> None:
    """Have a waiting job served before others."""
    _become("jobs", ["move", request_id, "--before", before], as_json)


@click.command("class")
@_id
@click.argument("job_class", metavar="CLASS", type=click.Choice(["interactive", "batch"]))
@options.as_json
def change_class(request_id: str, job_class: str, as_json: bool) -> None:
    """Have a waiting job served as interactive or batch."""
    _become("jobs", ["class", request_id, job_class], as_json)


@click.command("prompts")
@click.argument("allowed", metavar="[yes|no]", required=False, type=click.Choice(["yes", "no"]))
@options.as_json
def prompts(allowed: str | None, as_json: bool) -> None:
    """Say, or decide, whether operators may see prompts."""
    words = ["prompts"]
    if allowed:
        words.append(allowed)
    _become("jobs", words, as_json)


@click.command("paused")
@options.as_json
def paused(as_json: bool) -> None:
    """List the models that take no new requests."""
    _become("model", ["paused"], as_json)


@click.command("pause")
@click.argument("name")
@click.option("--reason", default="", help="What refused users read.")
@options.as_json
def pause(name: str, reason: str, as_json: bool) -> None:
    """Take no new requests for a model; what waits goes on."""
    _become("model", ["pause", name, "--reason", reason], as_json)


@click.command("resume")
@click.argument("name")
@options.as_json
def resume(name: str, as_json: bool) -> None:
    """Take requests for a model again."""
    _become("model", ["resume", name], as_json)


@click.command("audit")
@click.option("--who", default="", help="Only this person's actions.")
@click.option("--action", default="", help="Only this action, such as drain.")
@click.option("--text", default="", help="Only with this in the target or the detail.")
@click.option("--limit", default=50, show_default=True, help="The newest so many.")
@options.as_json
def audit(who: str, action: str, text: str, limit: int, as_json: bool) -> None:
    """Print what operators did, newest first."""
    words = ["--who", who, "--of", action, "--text", text, "--limit", str(limit)]
    _become("audit", words, as_json)


def _become(command: str, words: list[str], as_json: bool) -> NoReturn:
    flags = ["--json"] if as_json else []
    try:
        amqp_url, management_url = registry.broker_addresses()
    except CliError:
        if command == "jobs" and words[0] != "prompts":
            raise
        amqp_url = management_url = ""  # nothing runs: the database alone is needed
        if command == "model":
            flags.append("--no-broker")
    env = {
        "CANOPY_HOME": str(homes.read().path),
        "CANOPY_AMQP_URL": amqp_url,
        "CANOPY_MANAGEMENT_URL": management_url or "",
    }
    become_module("api", command, *flags, *words, **env)
