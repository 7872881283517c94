"""The command line: the map of all commands. Each is imported when it runs."""

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

import click

from cli.console import open_standard_streams
from cli.errors import CliError, explain_os_error
from cli.lazy import Group, LazyCommand

_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

# Name -> command in cli/commands/, and the first line of its docstring; in the order of `--help`.
_COMMANDS = {
    "up": ("up:up", "Prepare what is missing, then start everything; Ctrl-C stops it."),
    "prepare": (
        "prepare:prepare",
        "Install what is missing and build the pages, as `up` does; start nothing.",
    ),
    "down": ("down:down", "Stop what `up` started, or is still starting."),
    "status": ("status:status", "Show what runs here, and how to reach and extend it."),
    "doctor": ("doctor:doctor", "List what this machine lacks, each with its remedy."),
    "restart": (
        "restart:restart",
        "Replace one node, or every process in turn, without a failed request.",
    ),
    "node": ("node:node", "Run one more worker, on any machine that reaches the broker."),
    "join": ("join:join", "Run a node here, below the Canopy of another machine."),
    "agent": ("agent:agent", "Let operators start and stop nodes on this machine."),
    "gateway": (
        "gateway:gateway",
        "Answer questions over plain sockets: a line of JSON in, lines out.",
    ),
    "backup": ("data:backup", "Write a backup to FILE, whether the instance runs or not."),
    "restore": (
        "data:restore",
        "Restore a backup into CANOPY_HOME and its database.",
    ),
    "migrate-db": (
        "data:migrate_db",
        "Copy everything from the SQLite file to a PostgreSQL database.",
    ),
    "login": (
        "access:login",
        "Print a fresh one-time login link, alone on standard output.",
    ),
    "tree": ("tree:tree", "Draw the tree of nodes."),
    "top": ("top:top", "Watch the tree: states, slots, queues, tokens a second."),
    "log": ("tree:log", "Print one node's state."),
    "history": ("history:history", "Show what was asked and how it went, over time."),
    "usage": ("usage:usage", "Show requests and tokens by user, key, model and day."),
    "logs": (
        "logs:logs",
        "Print the last lines of a process's log, or of all processes in the order of time.",
    ),
    "audit": ("jobs:audit", "Print what operators did, newest first."),
    "attach": ("act:attach", "Move a running node, with all below it, under another parent."),
    "drain": ("act:drain", "Let a node finish its jobs; hand it and all below it nothing new."),
    "resume": ("act:resume", "Let a drained node take jobs again."),
    "remove": ("act:remove", "End a node for good; its children move to its parent."),
    "drill": ("drill:drill", "Kill a node on purpose, and count what becomes of its jobs."),
    "bench": ("development:bench", "Run a benchmark: bench NAME [--json FILE]."),
    "test": ("development:test", "Run all tests, some tiers, or pytest with your arguments."),
}
_KEY = {
    "create": ("access:create_key", "Print a new API key, alone on standard output."),
    "list": (
        "access:list_keys",
        "List the API keys that are not revoked: whose, last use, expiry, scopes.",
    ),
    "revoke": (
        "access:revoke_key",
        "Make an API key invalid; what runs for it ends within a second.",
    ),
}
_NODE_TOKEN = {
    "create": (
        "node_token:create",
        "Print a token, alone on standard output: with it one node joins from another machine.",
    ),
    "list": (
        "node_token:list_tokens",
        "List the tokens that are valid: for which node, where it hangs, last use, expiry.",
    ),
    "revoke": (
        "node_token:revoke",
        "End a token: the broker closes the node's connections at once.",
    ),
}
_JOBS = {
    "list": ("jobs:list_jobs", "List what runs and what waits."),
    "show": ("jobs:show", "Show one job: where it is, whose, since when."),
    "cancel": ("jobs:cancel", "End a job wherever it is; its reader hears why."),
    "move": ("jobs:move", "Have a waiting job served before others."),
    "class": ("jobs:change_class", "Have a waiting job served as interactive or batch."),
    "prompts": ("jobs:prompts", "Say, or decide, whether operators may see prompts."),
}
_BATCH = {
    "submit": ("batch:submit", "Answer all lines of a file in the background; print the batch."),
    "list": ("batch:list_batches", "List my latest batches."),
    "show": ("batch:show", "Show how far a batch is."),
    "cancel": ("batch:cancel", "End a batch; what is answered is kept."),
    "results": ("batch:results", "Print the results of a batch that has ended, one a line."),
}
_MODEL = {
    "paused": ("jobs:paused", "List the models that take no new requests."),
    "pause": ("jobs:pause", "Take no new requests for a model; what waits goes on."),
    "resume": ("jobs:resume", "Take requests for a model again."),
    "load": ("served:load", "Load a model on a host: the root of its tree, and a node."),
    "stop": ("served:stop", "End all nodes of a model."),
    "list": (
        "served:list_models",
        "List the models: nodes, memory, settings, and where they may be loaded.",
    ),
    "set": ("served:set_model", "Set a model's description, limits and defaults."),
}
_AUTOSCALE = {
    "show": ("served:show", "Show which models are autoscaled."),
    "set": ("served:set_rule", "Keep a model between two numbers of nodes."),
    "off": ("served:off", "Leave a model's nodes to people again."),
}
_USER = {
    "create": ("user:create", "Make an account; print its one-time login link."),
    "list": ("user:list_users", "List all accounts."),
    "password": ("user:password", "Give somebody a new password; all their sessions end."),
    "disable": ("user:disable", "End somebody's sessions and requests; refuse their keys."),
    "enable": ("user:enable", "Let somebody log in again, and use their keys."),
    "link": ("user:link", "Let a directory or a provider check who somebody is."),
    "unlink": ("user:unlink", "End somebody's links to a directory or a provider."),
    "unlock": ("user:unlock", "Let somebody try passwords again, after too many wrong ones."),
    "role": ("user:role", "Change what somebody may do."),
}
_PLAN = {
    "list": ("plan:list_plans", "List the plans, with the number of their users."),
    "create": ("plan:create", "Make a plan; what is left out is no limit."),
    "set": ("plan:set_plan", "Change a plan's limits; N may be none."),
    "assign": ("plan:assign", "Give somebody a plan; without PLAN the default one."),
    "remove": ("plan:remove", "Remove a plan; its users get the default one."),
}
_HOST = {
    "list": ("host:list_hosts", "List the hosts with an agent, and the nodes there."),
    "start": ("host:start", "Start one more node on a host."),
    "stop": ("host:stop", "End a node on a host for good."),
}
_DEAD = {
    "list": ("dead:list_letters", "List them, oldest first."),
    "show": ("dead:show", "Show a letter's headers and content."),
    "replay": ("dead:replay", "Run jobs again; print the answer."),
    "edit": ("dead:edit", "Change a job, then run it again."),
    "drop": ("dead:drop", "Remove letters for good."),
}


def command_line() -> Group:
    """All commands."""
    key = Group("key", "API keys.", _lazy(_KEY))
    node_token = Group(
        "node-token", "Credentials with which other machines join.", _lazy(_NODE_TOKEN)
    )
    jobs = Group("jobs", "What waits and runs, and what to do with it.", _lazy(_JOBS))
    batch = Group("batch", "Many requests from a file, answered in the background.", _lazy(_BATCH))
    model = Group("model", "Models: load, stop, describe, pause, resume.", _lazy(_MODEL))
    autoscale = Group("autoscale", "How many nodes a model has.", _lazy(_AUTOSCALE))
    user = Group("user", "People: accounts and their roles.", _lazy(_USER))
    plan = Group("plan", "Plans: what users may ask for, and at once.", _lazy(_PLAN))
    host = Group("host", "Machines with an agent, where nodes can be started.", _lazy(_HOST))
    dead = Group("dead", "Dead letters: jobs that were given up on.", _lazy(_DEAD))
    help_text = (
        "Canopy: a self-hosted ChatGPT-like service on RabbitMQ.\n\nStart with `./canopy up`."
    )
    groups = [key, node_token, user, plan, jobs, batch, model, autoscale, host, dead]
    everything = Group("canopy", help_text, [*_lazy(_COMMANDS), *groups])
    everything.params.append(
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the release.",
        )
    )
    return everything


def _print_version(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked:
        from topology.version import VERSION

        print(f"canopy {VERSION}")
        context.exit()


def _lazy(table: Mapping[str, tuple[str, str]]) -> list[LazyCommand]:
    commands = []
    for name, (target, summary) in table.items():
        commands.append(LazyCommand(name, f"cli.commands.{target}", summary))
    return commands


def main() -> int:
    """Runs the command; an expected failure is one line on standard error and an exit status."""
    open_standard_streams()
    try:
        status: int | None = command_line().main(
            prog_name="canopy", standalone_mode=False, **_SETTINGS
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except CliError as error:
        return fail(error)
    except OSError as error:
        return fail(explain_os_error(error))
    except (click.Abort, KeyboardInterrupt):
        return 130
    return status or 0


def fail(error: CliError) -> int:
    """Prints a failure, preceded by its detail, and returns the exit status."""
    with contextlib.suppress(OSError):  # standard error may be closed
        if error.detail:
            print(error.detail, file=sys.stderr)
        print(f"canopy: {error}", file=sys.stderr, flush=True)
    from cli.detached import report_failure

    report_failure(str(error))
    return error.code


if __name__ == "__main__":
    sys.exit(main())
