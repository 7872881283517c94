"""`up`: from options to a running instance."""

from pathlib import Path

import click

from cli import detached, devices, environment, launcher, lock, options, ports
from cli import home as homes
from cli.errors import UsageError
from cli.plan import Request
from cli.prepare import gpus as installed_gpus
from cli.prepare.model import Model
from topology.dispatch import POLICIES


@click.command()
@click.option(
    "--model",
    multiple=True,
    help="Model to serve: a name, a folder, a Hugging Face id. "
    "Repeat for several; each gets a tree.",
)
@click.option(
    "--engine",
    default="transformers",
    show_default=True,
    help="transformers, openai (see --upstream), echo (repeats the question), or an.engine.module.",
)
@options.nodes
@click.option(
    "--fanout",
    type=click.IntRange(min=1),
    help="Most children of a node; without it all are below the root.",
)
@options.slots
@click.option(
    "--standby",
    type=click.IntRange(0, 9),
    default=0,
    show_default=True,
    help="Roots per model that take over if the root dies.",
)
@click.option("--policy", help=f"Dispatch rule: {', '.join(POLICIES)}.")
@options.device
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    help="Port of the pages and the API.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address of the API; 0.0.0.0 lets other machines in.",
)
@click.option(
    "--listen",
    metavar="ADDRESS",
    help="Address of this machine at which workers on others reach the broker, with TLS; "
    "0.0.0.0: all of them. Default: none.",
)
@click.option(
    "--tls-cert",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Certificate of --listen, in PEM, with the rest of its chain. "
    "Default: one of its own, made on first use, which workers pin.",
)
@click.option(
    "--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="Its private key, in PEM."
)
@click.option(
    "--tunnel",
    is_flag=True,
    envvar="CANOPY_TUNNEL",
    show_envvar=True,
    help="Let workers reach the broker through the pages' address, too, for machines that reach "
    "nothing else.",
)
@click.option(
    "--token-delay",
    type=click.FloatRange(min=0),
    help="Seconds between words of the echo engine.",
)
@options.precision
@options.kv_cache_dtype
@options.memory_fraction
@options.upstream
@options.upstream_model
@options.tensor_parallel
@options.task
@click.option(
    "--api-processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes that serve the port; more use more cores.",
)
@options.allow_model
@options.max_nodes
@click.option("--detach", is_flag=True, help="Return when ready; ./canopy down stops it.")
def up(
    model: tuple[str, ...],
    engine: str,
    nodes: int | None,
    fanout: int | None,
    slots: str,
    standby: int,
    policy: str | None,
    device: str | None,
    port: int,
    host: str,
    listen: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tunnel: bool,
    token_delay: float | None,
    precision: str | None,
    kv_cache_dtype: str | None,
    memory_fraction: float | None,
    upstream: str | None,
    upstream_model: str | None,
    tensor_parallel: int,
    task: str,
    api_processes: int,
    allow_model: tuple[str, ...],
    max_nodes: int,
    detach: bool,
) -> None:
    """Prepare what is missing, then start everything; Ctrl-C stops it."""
    options.check_engine(engine)
    options.check_engine_options(engine, upstream, tensor_parallel)
    options.check_policy(policy)
    options.check_precision(precision)
    options.check_kv_cache_dtype(kv_cache_dtype)
    gpus = installed_gpus.count()
    if nodes is None:
        nodes = devices.default_nodes(engine, device, gpus, tensor_parallel)
    home = homes.read()
    models = [Model(argument) for argument in model or [options.default_model(engine)]]
    arguments = arguments_by_name(models)
    request = Request(
        models=dict.fromkeys(arguments),
        model_arguments=arguments,
        engine=engine,
        nodes=nodes,
        fanout=fanout,
        slots=options.parse_slots(slots),
        policy=policy,
        device=device,
        gpus=gpus,
        token_delay=token_delay,
        precision=precision,
        kv_cache_dtype=kv_cache_dtype,
        memory_fraction=memory_fraction,
        upstream=upstream,
        upstream_model=upstream_model,
        tensor_parallel=tensor_parallel,
        task=task,
        host=ports.without_brackets(host),
        port=port,
        listen=listen and ports.resolved(listen),
        tls_files=_tls_files(listen, tls_cert, tls_key),
        tunnel=tunnel,
        standby=standby,
        api_processes=api_processes,
        public_url=environment.read().url,
        allowed_models=arguments_by_name([Model(argument) for argument in allow_model]),
        max_nodes=max_nodes,
    )
    model_files = models if engine == "transformers" and nodes else []
    with lock.hold(home) as instance_lock:  # refuses a second `up`
        launcher.check(request, home)
        launcher.prepare(model_files, home)
        if detach:
            detached.detach(home, instance_lock)
        else:
            folders = {prepared.name: prepared.folder for prepared in model_files}
            launcher.run(request.with_folders(folders), home)


def _tls_files(listen: str | None, cert: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """The operator's certificate and key, if given. Raises UsageError."""
    if listen and environment.read().amqp_url:
        raise UsageError("--listen is for Canopy's own broker, and CANOPY_AMQP_URL names another.")
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise UsageError("--tls-cert and --tls-key go together: a certificate and its key.")
    if not listen:
        raise UsageError("--tls-cert is the certificate of --listen: say the address, too.")
    return cert, key


def arguments_by_name(models: list[Model]) -> dict[str, str]:
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
