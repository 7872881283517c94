"""Commands that hand over to another program of Canopy: node, key, bench, test."""

import os
import sys
from typing import Annotated, Any

import typer

from cli import home as homes
from cli import instance, joining, testing
from cli.errors import CliError
from cli.home import PRIVATE_UMASK, Home, module_command, module_environment
from cli.lifecycle import (
    DEFAULT_MODEL,
    DEVICE_HELP,
    PRECISION_HELP,
    SLOTS_HELP,
    TENSOR_PARALLEL_HELP,
    UPSTREAM_HELP,
    UPSTREAM_WAY,
    check_precision,
    check_slots,
)
from cli.plan import SPINS
from cli.prepare import steps
from cli.prepare.model import Model

key = typer.Typer(help="API keys.", no_args_is_help=True)
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def add_to(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(node)
    app.add_typer(key, name="key")
    app.command()(login)
    app.command(context_settings=_PASS_ON)(bench)
    app.command(context_settings=_PASS_ON)(test)


def node(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name in the tree, unlike any other.")],
    parent: Annotated[str | None, typer.Option(help="The node to hang below.")] = None,
    standby: Annotated[
        bool,
        typer.Option("--standby", help="Be the root of that name as soon as no other process is."),
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Model to serve; default: the running instance's first.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="transformers, openai or echo; default: the running instance's."),
    ] = None,
    slots: Annotated[str, typer.Option(metavar="N|auto", help=SLOTS_HELP)] = "auto",
    device: Annotated[str | None, typer.Option(help=DEVICE_HELP)] = None,
    precision: Annotated[
        str | None, typer.Option(envvar="CANOPY_PRECISION", help=PRECISION_HELP)
    ] = None,
    upstream: Annotated[
        str | None, typer.Option(envvar="CANOPY_UPSTREAM", help=UPSTREAM_HELP)
    ] = None,
    upstream_model: Annotated[
        str | None,
        typer.Option(envvar="CANOPY_UPSTREAM_MODEL", help="The model's name on that server."),
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, max=64, help=TENSOR_PARALLEL_HELP)] = 1,
) -> None:
    """One more worker, on any machine that reaches the broker (CANOPY_AMQP_URL, or an instance that runs here)."""
    if standby == (parent is not None):
        raise CliError(
            "Say --parent P for a worker, or --standby for a root that waits for its name", code=2
        )
    home = homes.read()
    url, record = _tree_to_join(home)
    engine = engine or (record["engine"] if record else "transformers")
    if model is None:
        usual = DEFAULT_MODEL if engine == "transformers" else engine
        model = joining.model_below(record, parent or name) if record else usual
    if parent is None:  # a root has neither model files nor slots
        options = ["--standby", "--engine", "none", "--model", Model(model).name]
    else:
        options = [
            "--parent",
            parent,
            "--engine",
            engine,
            "--slots",
            str(check_slots(slots) or "auto"),
        ]
        options += [*_model(home, model, engine), *(["--device", device] if device else [])]
        options += _upstream(upstream, upstream_model) if engine == "openai" else []
        options += _tensor_parallel(tensor_parallel, engine)
    os.umask(PRIVATE_UMASK)
    _become(
        "worker", "--name", name, *options, *_policy(record), *context.args,
        CANOPY_AMQP_URL=url, CANOPY_HOME=str(home.path), CANOPY_PRECISION=check_precision(precision) or "auto",
        GOMP_SPINCOUNT=os.environ.get("GOMP_SPINCOUNT") or SPINS,
    )  # fmt: skip


def _tree_to_join(home: Home) -> tuple[str, dict[str, Any] | None]:
    """The broker's address, and the instance's record if it is the one that runs here: what runs here
    says nothing of a tree elsewhere. Raises CliError when there is neither.
    """
    url = os.environ.get("CANOPY_AMQP_URL")
    if not url:
        record = instance.running(home)
        return record["amqp"]["node"], record
    here = instance.read(home)
    return url, here if here and here["amqp"]["node"] == url else None


@key.command()
def create(
    user: Annotated[
        str | None, typer.Option(help="Whose key; default: the first administrator.")
    ] = None,
) -> None:
    """Print a new API key, alone on standard output."""
    home = homes.read()
    _become("api", "create-key", *(["--user", user] if user else []), CANOPY_HOME=str(home.path))


def login(
    user: Annotated[
        str | None, typer.Option(help="Whose login; default: the first administrator.")
    ] = None,
) -> None:
    """Print a fresh one-time login link, alone on standard output. It replaces the former one."""
    home = homes.read()
    address = ["--address", instance.running(home)["address"]]
    whose = ["--user", user] if user else []
    _become("api", "login-token", *address, *whose, CANOPY_HOME=str(home.path))


def bench(context: typer.Context) -> None:
    """Run a benchmark: bench NAME [--json FILE]."""
    _become("bench", *context.args)


def test(context: typer.Context) -> None:
    """Run all tests, some tiers (lint unit broker faults e2e clients frontend), or pytest with your arguments."""
    raise typer.Exit(testing.run(context.args))


def _policy(record: dict[str, Any] | None) -> list[str]:
    """The running instance's: its nodes must follow the same rule. A later --policy overrides it."""
    policy = record.get("policy") if record else None
    return ["--policy", policy] if policy else []


def _upstream(address: str | None, model: str | None) -> list[str]:
    if not address:
        raise CliError(f"The openai engine needs a server; say {UPSTREAM_WAY}", code=2)
    return ["--upstream", address, *(["--upstream-model", model] if model else [])]


def _tensor_parallel(processes: int, engine: str) -> list[str]:
    if processes > 1 and engine != "transformers":
        raise CliError("--tensor-parallel is for the transformers engine alone.", code=2)
    return ["--tensor-parallel", str(processes)] if processes > 1 else []


def _model(home: Home, asked: str, engine: str) -> list[str]:
    model = Model(asked)
    if engine == "transformers":
        home.make()
        with steps.exclusive(home.models_lock):
            steps.run_together([model.step(home)], home.logs)
    return ["--model", model.name, *(["--model-path", str(model.folder)] if model.folder else [])]


def _become(module: str, *arguments: str, **env: str) -> None:
    """Replaces this process by another program of ours: signals and the exit status are then its own."""
    sys.stdout.flush()
    os.execve(sys.executable, module_command(module, *arguments), {**module_environment(), **env})  # noqa: S606
