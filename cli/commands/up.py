"""`up`: from options to a running instance."""

from typing import Annotated

import typer

from cli import detached, devices, environment, launcher, lock, options, ports
from cli import home as homes
from cli.errors import UsageError
from cli.plan import Request
from cli.prepare import gpus as installed_gpus
from cli.prepare.model import Model
from topology.dispatch import POLICIES


def up(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to serve: a name, a folder, a Hugging Face id. "
            "Repeat for several; each gets a tree."
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="transformers, openai (see --upstream), echo (repeats the question), "
            "or an.engine.module."
        ),
    ] = "transformers",
    nodes: options.Nodes = None,
    fanout: Annotated[
        int | None,
        typer.Option(min=1, help="Most children of a node; without it all are below the root."),
    ] = None,
    slots: options.Slots = "auto",
    standby: Annotated[
        int,
        typer.Option(min=0, max=9, help="Roots per model that take over if the root dies."),
    ] = 0,
    policy: Annotated[
        str | None, typer.Option(help=f"Dispatch rule: {', '.join(POLICIES)}.")
    ] = None,
    device: options.Device = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the pages and the API.")
    ] = 8000,
    host: Annotated[
        str, typer.Option(help="Address of the API; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    listen: Annotated[
        str, typer.Option(help="Address of the broker; 0.0.0.0 lets other machines add workers.")
    ] = "127.0.0.1",
    token_delay: Annotated[
        float | None, typer.Option(min=0, help="Seconds between words of the echo engine.")
    ] = None,
    precision: options.Precision = None,
    upstream: options.Upstream = None,
    upstream_model: options.UpstreamModel = None,
    tensor_parallel: options.TensorParallel = 1,
    api_processes: Annotated[
        int,
        typer.Option(min=1, max=64, help="Processes that serve the port; more use more cores."),
    ] = 1,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when ready; ./canopy down stops it.")
    ] = False,
) -> None:
    """Prepare what is missing, then start everything; Ctrl-C stops it."""
    options.check_engine(engine)
    options.check_engine_options(engine, upstream, tensor_parallel)
    options.check_policy(policy)
    options.check_precision(precision)
    gpus = installed_gpus.count()
    home = homes.read()
    models = [Model(argument) for argument in model or [options.default_model(engine)]]
    request = Request(
        models=dict.fromkeys((each.name for each in models), None),
        model_arguments=_arguments_by_name(models),
        engine=engine,
        nodes=nodes or devices.default_nodes(engine, device, gpus, tensor_parallel),
        fanout=fanout,
        slots=options.parse_slots(slots),
        policy=policy,
        device=device,
        gpus=gpus,
        token_delay=token_delay,
        precision=precision,
        upstream=upstream,
        upstream_model=upstream_model,
        tensor_parallel=tensor_parallel,
        host=ports.without_brackets(host),
        port=port,
        listen=ports.resolved(listen),
        standby=standby,
        api_processes=api_processes,
        public_url=environment.read().public_url,
    )
    model_files = models if engine == "transformers" else []
    with lock.held(home) as held_lock:  # refuses a second `up`
        launcher.check(request, home)
        launcher.prepare(model_files, home)
        if detach:
            detached.detach(home, held_lock)
        else:
            folders = {each.name: each.folder for each in model_files}
            launcher.run(request.with_folders(folders), home)


def _arguments_by_name(models: list[Model]) -> dict[str, str]:
    """Public name -> what --model said. Raises UsageError for two folders of one name."""
    arguments: dict[str, str] = {}
    for model in models:
        argument = arguments.setdefault(model.name, model.argument)
        if argument != model.argument:
            raise UsageError(
                f"{argument} and {model.argument} would both be called {model.name!r}; "
                "rename one of the folders."
            )
    return arguments
