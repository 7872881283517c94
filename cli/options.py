"""Options that several commands share, and the checks of their values."""

import click

from cli import devices
from cli.errors import UsageError

DEFAULT_MODEL = "smollm2-135m-instruct"
ENGINES = ("transformers", "openai", "echo")
TASKS = ("auto", "generate", "embed", "score")
PRECISIONS = ("auto", "float32", "bfloat16", "int8", "int8-fast", "int4", "fp8")
KV_CACHE_DTYPES = ("auto", "float32", "bfloat16", "fp8")
UPSTREAM_USAGE = (
    "--upstream http://HOST:PORT/v1 (or CANOPY_UPSTREAM; a key goes into CANOPY_UPSTREAM_KEY)"
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
device = click.option(
    "--device", help="auto, cpu, cuda:0, ...; cuda:0,cuda:1 spreads the layers over both."
)
nodes = click.option(
    "--nodes",
    type=click.IntRange(0, 500),
    help=f"Workers per model. Default: one per GPU, or {devices.NODES_WITHOUT_GPU} without any. "
    "0: other machines bring them.",
)
allow_model = click.option(
    "--allow-model",
    multiple=True,
    help="Model that operators may load here: a name, a folder, a Hugging Face id. Repeatable.",
)
max_nodes = click.option(
    "--max-nodes",
    type=click.IntRange(1, 1000),
    default=64,
    show_default=True,
    help="Nodes that may run on this machine.",
)
memory_fraction = click.option(
    "--memory-fraction",
    type=click.FloatRange(min=0, min_open=True, max=1),
    envvar="CANOPY_MEMORY_FRACTION",
    show_envvar=True,
    metavar="F",
    help="Part of its GPU's memory that a node may take, weights included: 0.45 leaves room for "
    "other programs. Default: what is free when it starts.",
)
precision = click.option(
    "--precision",
    envvar="CANOPY_PRECISION",
    show_envvar=True,
    help="Number format of the transformers engine's weights. On a CPU: auto, float32, bfloat16, "
    "int8, int8-fast, int4; on a GPU: auto, bfloat16, fp8. Default: auto, which never chooses fp8.",
)
kv_cache_dtype = click.option(
    "--kv-cache-dtype",
    envvar="CANOPY_KV_CACHE_DTYPE",
    show_envvar=True,
    help="Number format of keys and values. On a CPU: auto, float32; on a GPU: auto, bfloat16, "
    "fp8, which holds twice the tokens in the same memory. Default: auto, the model's own.",
)
slots = click.option(
    "--slots",
    metavar="N|auto",
    default="auto",
    help="Answers a worker writes at the same time: N, or auto: what a GPU's memory allows, "
    "else 8.",
)
tensor_parallel = click.option(
    "--tensor-parallel",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes, each with a device, that share one model.",
)
task = click.option(
    "--task",
    type=click.Choice(TASKS),
    default="auto",
    show_default=True,
    help="What the models do: generate answers, embed texts, or score documents for a query. "
    "auto: as each model's files say.",
)
upstream = click.option(
    "--upstream",
    envvar="CANOPY_UPSTREAM",
    show_envvar=True,
    help="openai engine: the OpenAI-compatible server that answers, http://HOST:PORT/v1.",
)
upstream_model = click.option(
    "--upstream-model",
    envvar="CANOPY_UPSTREAM_MODEL",
    show_envvar=True,
    help="The model's name on that server.",
)


def parse_slots(text: str, most: int | None = None) -> int | None:
    """The number; None for "auto". Raises UsageError for anything else."""
    from topology.limits import MAX_SLOTS  # here, as `status` has no slots

    most = most or MAX_SLOTS
    if text == "auto":
        return None
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most))
    if not is_number or not 1 <= int(text) <= most:
        raise UsageError(
            f"--slots must be a number from 1 to {most:,}, or auto, not {text[:60]!r}."
        )
    return int(text)


def check_precision(precision: str | None) -> None:
    """Raises UsageError for an unknown number format."""
    if precision and precision not in PRECISIONS:
        raise _unknown("precision", precision, PRECISIONS)


def check_kv_cache_dtype(dtype: str | None) -> None:
    """Raises UsageError for an unknown number format."""
    if dtype and dtype not in KV_CACHE_DTYPES:
        raise _unknown("KV cache dtype", dtype, KV_CACHE_DTYPES)


def check_engine(engine: str) -> None:
    """Raises UsageError for an unknown engine; a name with a dot is a module of the user's own."""
    if engine not in ENGINES and "." not in engine:
        raise _unknown("engine", engine, ENGINES)


def check_policy(policy: str | None) -> None:
    """Raises UsageError for an unknown dispatch policy."""
    from topology.dispatch import POLICIES  # here, as `status` has no policy

    if policy is not None and policy not in POLICIES:
        raise _unknown("policy", policy, tuple(POLICIES))


def check_engine_options(engine: str, upstream: str | None, tensor_parallel: int) -> None:
    """Raises UsageError where an option is missing for the engine, or belongs to another one."""
    if engine == "openai" and not upstream:
        raise UsageError(f"The openai engine needs a server; say {UPSTREAM_USAGE}")
    if tensor_parallel > 1 and engine != "transformers":
        raise UsageError("--tensor-parallel is for the transformers engine alone.")


def default_model(engine: str) -> str:
    """The model's name where the user gives none; engines without model files go by their own."""
    if engine == "transformers":
        return DEFAULT_MODEL
    return engine


def _unknown(kind: str, name: str, choices: tuple[str, ...]) -> UsageError:
    return UsageError(f"There is no {kind} {name!r}; choose one of {', '.join(choices)}.")
