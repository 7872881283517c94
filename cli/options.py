"""Options that several commands share: their types, their help, their checks."""

from typing import Annotated

import typer

from cli import devices
from cli.errors import UsageError
from topology.dispatch import POLICIES

DEFAULT_MODEL = "gemma-3-270m"
ENGINES = ("transformers", "openai", "echo")
PRECISIONS = ("auto", "float32", "bfloat16", "int8", "int8-fast")
UPSTREAM_USAGE = (
    "--upstream http://HOST:PORT/v1 (or CANOPY_UPSTREAM; a key goes into CANOPY_UPSTREAM_KEY)"
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda:0, ...; cuda:0,cuda:1 spreads the layers over both."),
]
Nodes = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=500,
        help="Workers per model. Default: one per GPU, "
        f"or {devices.NODES_WITHOUT_GPU} without any.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        envvar="CANOPY_PRECISION",
        help="Number format of the transformers engine on a CPU: "
        f"{', '.join(PRECISIONS)}. Default: auto.",
    ),
]
Slots = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        help="Answers a worker writes at the same time: N, or auto: what a GPU's memory allows, "
        "else 8.",
    ),
]
TensorParallel = Annotated[
    int,
    typer.Option(min=1, max=64, help="Processes, each with a device, that share one model."),
]
Upstream = Annotated[
    str | None,
    typer.Option(
        envvar="CANOPY_UPSTREAM",
        help="openai engine: the OpenAI-compatible server that answers, http://HOST:PORT/v1.",
    ),
]
UpstreamModel = Annotated[
    str | None,
    typer.Option(envvar="CANOPY_UPSTREAM_MODEL", help="The model's name on that server."),
]


def parse_slots(text: str) -> int | None:
    """The number; None for "auto". Raises UsageError for anything else."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise UsageError(f"--slots must be a number from 1 up, or auto, not {text!r}.")
    return int(text)


def check_precision(precision: str | None) -> None:
    """Raises UsageError for an unknown number format."""
    if precision and precision not in PRECISIONS:
        raise _unknown("precision", precision, PRECISIONS)


def check_engine(engine: str) -> None:
    """Raises UsageError for an unknown engine; a name with a dot is a module of the user's own."""
    if engine not in ENGINES and "." not in engine:
        raise _unknown("engine", engine, ENGINES)


def check_policy(policy: str | None) -> None:
    """Raises UsageError for an unknown dispatch policy."""
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
    return DEFAULT_MODEL if engine == "transformers" else engine


def _unknown(kind: str, name: str, choices: tuple[str, ...]) -> UsageError:
    return UsageError(f"There is no {kind} {name!r}; choose one of {', '.join(choices)}.")
