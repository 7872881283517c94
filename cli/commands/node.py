"""`node`: one more worker process, which joins a tree here or on another machine."""

import os

import click

from cli import addresses, environment, instance, joining, options
from cli import home as homes
from cli.errors import UsageError
from cli.home import PRIVATE_UMASK, Home, become_module
from cli.plan import OPENMP_SPIN_COUNT
from cli.prepare import steps
from cli.prepare.model import Model


@click.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@click.argument("name")
@click.option("--parent", help="The node to hang below.")
@click.option(
    "--standby", is_flag=True, help="Be the root of that name as soon as no other process is."
)
@click.option("--model", help="Model to serve; default: the running instance's first.")
@click.option("--engine", help="transformers, openai or echo; default: the running instance's.")
@options.slots
@options.device
@options.precision
@options.kv_cache_dtype
@options.memory_fraction
@options.upstream
@options.upstream_model
@options.tensor_parallel
@options.task
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="How long to go on trying while the broker or the parent is not there. Default: once. "
    "A node that has served tries for ever.",
)
@click.pass_context
def node(
    context: click.Context,
    name: str,
    parent: str | None,
    standby: bool,
    model: str | None,
    engine: str | None,
    slots: str,
    device: str | None,
    precision: str | None,
    kv_cache_dtype: str | None,
    memory_fraction: float | None,
    upstream: str | None,
    upstream_model: str | None,
    tensor_parallel: int,
    task: str,
    wait: float,
) -> None:
    """Run one more worker, on any machine that reaches the broker.

    NAME is unlike any other in the tree. The broker is CANOPY_AMQP_URL's, or that of the instance
    that runs here.
    """
    if standby == (parent is not None):
        raise UsageError("Say --parent P for a worker, or --standby for a root that waits.")
    options.check_precision(precision)
    options.check_kv_cache_dtype(kv_cache_dtype)
    home = homes.read()
    amqp_url, record = tree_to_join(home)
    if engine is None:
        engine = "transformers"
        if record is not None:
            engine = record["engine"]
    if model is None:
        model = _model_argument(record, parent or name, engine)
    arguments = ["--name", name]
    if parent is None:  # a root has neither model files nor slots
        arguments += ["--standby", "--engine", "none", "--model", Model(model).name]
        arguments += ["--tree-engine", engine]
    else:
        arguments += ["--parent", parent, "--engine", engine]
        arguments += ["--slots", str(options.parse_slots(slots) or "auto")]
        arguments += _model_options(home, model, engine)
        if device:
            arguments += ["--device", device]
        options.check_engine_options(engine, upstream, tensor_parallel)
        arguments += _engine_options(engine, upstream, upstream_model, tensor_parallel)
        if task == "auto" and record is not None:
            task = record.get("task", task)
        arguments += ["--task", task]
    if record and record.get("policy"):  # one rule for a whole tree; a later --policy overrides it
        arguments += ["--policy", record["policy"]]
    os.umask(PRIVATE_UMASK)
    home.make()
    become_module(
        "worker",
        *arguments,
        *("--wait", str(wait)),
        *context.args,
        CANOPY_AMQP_URL=amqp_url,
        **home.node_variables(name),
        CANOPY_PRECISION=precision or "auto",
        CANOPY_KV_CACHE_DTYPE=kv_cache_dtype or "auto",
        CANOPY_MEMORY_FRACTION=str(memory_fraction or ""),
        GOMP_SPINCOUNT=environment.read().spin_count or OPENMP_SPIN_COUNT,
    )


def tree_to_join(home: Home) -> tuple[str, instance.Record | None]:
    """The broker's address, and the record of the instance here if it uses that broker.

    An instance here says nothing about a tree elsewhere. Raises StateError without either.
    """
    amqp_url, _ = addresses.of_environment()
    if not amqp_url:
        record = instance.running(home)
        return record["amqp"]["node"], record
    local = instance.read(home)
    if local is None or local["amqp"]["node"] != amqp_url:
        return amqp_url, None
    return amqp_url, local


def _model_argument(record: instance.Record | None, root: str, engine: str) -> str:
    if record is None:
        return options.default_model(engine)
    return joining.model_below(record, root)


def _model_options(home: Home, argument: str, engine: str) -> list[str]:
    """The model's name and, once it is prepared, its folder."""
    model = Model(argument)
    if engine == "transformers":
        home.make()
        with steps.exclusive(home.models_lock):
            steps.run_together([model.step(home)], home.logs)
    words = ["--model", model.name]
    if model.folder:
        words += ["--model-path", str(model.folder)]
    return words


def _engine_options(
    engine: str, upstream: str | None, upstream_model: str | None, tensor_parallel: int
) -> list[str]:
    words: list[str] = []
    if engine == "openai" and upstream:
        words += ["--upstream", upstream]
        if upstream_model:
            words += ["--upstream-model", upstream_model]
    if tensor_parallel > 1:
        words += ["--tensor-parallel", str(tensor_parallel)]
    return words
