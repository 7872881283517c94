"""A worker's settings, read once at start from arguments and environment."""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from broker import logs
from broker.logs import LogSettings
from topology.cap import AUTOMATIC
from topology.dispatch import DEFAULT_POLICY, POLICIES
from topology.limits import MAX_SLOTS
from topology.names import BadName, check_node_name
from topology.prefix import with_prefix
from worker.errors import BadSettings
from worker.watchdog import STEP_SECONDS


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """`amqp_url`: see broker.addresses. `queue_type`: classic, or quorum on a cluster."""

    amqp_url: str
    queue_type: str


@dataclass(frozen=True, slots=True)
class Settings:
    """One node. `options` are the arguments; the other fields come from the environment.

    `step_seconds`: an engine's step that takes longer hangs. `user_jobs`: jobs of one user that may
    run below a root at once; see topology.cap. `status_file`: see worker.status_file. `log_file`:
    where the log goes, beside standard error. `sockets`: the folder of worker.local_control.
    """

    options: argparse.Namespace
    broker: BrokerSettings
    step_seconds: float
    user_jobs: int | None
    logs: LogSettings
    status_file: Path | None
    log_file: Path | None = None
    sockets: Path | None = None


def read(options: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Raises BadSettings that names the argument or variable."""
    try:
        check_node_name(options.name)
    except BadName as error:
        raise BadSettings(str(error)) from error
    amqp_url = _amqp_url(environ)
    return Settings(
        options=options,
        broker=BrokerSettings(amqp_url, environ.get("CANOPY_QUEUE_TYPE", "classic")),
        step_seconds=_seconds("CANOPY_STEP_SECONDS", environ.get("CANOPY_STEP_SECONDS", "")),
        user_jobs=_user_jobs(environ.get("CANOPY_USER_JOBS", "")),
        logs=_logs(environ),
        status_file=_file(environ.get("CANOPY_STATUS_FILE", "")),
        log_file=_file(environ.get("CANOPY_LOG_FILE", "")),
        sockets=_file(environ.get("CANOPY_NODE_SOCKETS", "")),
    )


def _amqp_url(environ: Mapping[str, str]) -> str:
    amqp_url = environ.get("CANOPY_AMQP_URL", "")
    if not amqp_url:
        raise BadSettings("CANOPY_AMQP_URL is not set: it says which broker to join")
    try:
        return with_prefix(amqp_url, environ.get("CANOPY_PREFIX", ""))
    except BadName as error:
        raise BadSettings(f"CANOPY_PREFIX: {error}") from error


def _logs(environ: Mapping[str, str]) -> LogSettings:
    try:
        return logs.read(environ)
    except ValueError as error:
        raise BadSettings(str(error)) from error


def _file(text: str) -> Path | None:
    return Path(text) if text else None


def _seconds(name: str, text: str) -> float:
    if not text:
        return STEP_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise BadSettings(f"{name} must be a number of seconds above 0, not {text!r}")
    return seconds


def _user_jobs(text: str) -> int | None:
    if not text:
        return AUTOMATIC
    if not text.isdecimal():
        raise BadSettings(
            f"CANOPY_USER_JOBS must be a whole number of jobs, 0 for no limit, not {text!r}"
        )
    return int(text)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; see the help texts."""
    parser = argparse.ArgumentParser(
        prog="python -m worker",
        description="One node as a process. People start it with `./canopy node`.",
    )
    parser.add_argument("--name", required=True, help="unique name of the node in the tree")
    parser.add_argument("--parent", help="node to hang below; without it this is a root")
    parser.add_argument("--model", required=True, help="public name of the model")
    parser.add_argument("--model-path", help="folder to load the model from")
    parser.add_argument(
        "--engine",
        default="transformers",
        help="transformers, encoder, openai, echo, or none for a root",
    )
    parser.add_argument(
        "--tree-engine",
        default="",
        help="for a root: nodes of another engine's family are refused; default: none is",
    )
    parser.add_argument(
        "--slots", type=_slots, help="jobs that run at once: N, or auto (the default)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda:0, …, or cuda:0,cuda:1: layers over both"
    )
    parser.add_argument(
        "--policy", default=DEFAULT_POLICY, choices=sorted(POLICIES), help="dispatch policy"
    )
    parser.add_argument(
        "--token-delay", type=float, default=0.0, help="echo only: seconds between tokens"
    )
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        help="transformers only: processes that the model is divided among",
    )
    parser.add_argument(
        "--task",
        default="auto",
        choices=("auto", "generate", "embed", "score"),
        help="what the model does; auto: as its files say",
    )
    parser.add_argument(
        "--upstream", default="", help="openai only: the server's address, http://HOST:PORT/v1"
    )
    parser.add_argument("--upstream-model", default="", help="openai only: the model's name there")
    parser.add_argument(
        "--standby", action="store_true", help="wait for the name while another node has it"
    )
    parser.add_argument(
        "--wait", type=float, default=0.0, help="seconds to wait for the broker and the parent"
    )
    return parser.parse_args(arguments)


def _slots(text: str) -> int | None:
    """A number of slots; None for "auto"."""
    if text == "auto":
        return None
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_SLOTS))
    if not is_number or not 1 <= int(text) <= MAX_SLOTS:
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is neither a number from 1 to {MAX_SLOTS:,} nor auto"
        )
    return int(text)
