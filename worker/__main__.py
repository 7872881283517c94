"""`python -m worker`: one node as a process. People start it with `./canopy node`."""

import argparse
import asyncio
import os
import signal
import sys

import structlog

from broker import heartbeat
from broker.amqp import AmqpSession
from broker.errors import BrokerError, NameTaken, NoParent
from broker.session import Session
from topology.cap import AUTOMATIC
from topology.dispatch import DEFAULT_POLICY, POLICIES
from topology.names import BadName, check_node_name
from worker.care import EngineStuck
from worker.engines.base import Engine, EngineUnavailable
from worker.life import Unwanted, live
from worker.node import Node
from worker.watchdog import STEP_SECONDS

CANNOT_START = 3
RETURN_SECONDS = 60.0  # a node that starts itself again waits so long for its parent


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; see the help texts."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--name", required=True, help="unique name of the node in the tree")
    parser.add_argument("--parent", help="node to hang below; without it this is a root")
    parser.add_argument("--model", required=True, help="public name of the model")
    parser.add_argument("--model-path", help="folder to load the model from")
    parser.add_argument(
        "--engine", default="transformers", help="transformers, openai, echo, or none for a root"
    )
    parser.add_argument(
        "--slots", type=slots_asked, help="jobs run at once: N, or auto (the default)"
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
        help="transformers only: processes that divide the model among them",
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


def slots_asked(text: str) -> int | None:
    """A number of slots; None for "auto"."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 1 up nor auto")
    return int(text)


class BadEnvironment(ValueError):
    """An environment variable that cannot be used; the text names it."""


def user_jobs(text: str) -> int | None:
    """How many jobs of one user may run below a root at once; 0: any number. Raises BadEnvironment."""
    if not text:
        return AUTOMATIC
    if not text.isdecimal():
        raise BadEnvironment(
            f"CANOPY_USER_JOBS must be a whole number of jobs, 0 for no limit, not {text!r}"
        )
    return int(text)


def make_engine(options: argparse.Namespace) -> Engine | None:
    """The engine named on the command line, not started; None for a root."""
    if options.engine == "none":
        return None
    from worker.engines import create  # a root needs none of it

    return create(
        options.engine,
        model=options.model,
        model_path=options.model_path,
        device=options.device,
        slots=options.slots,
        token_delay=options.token_delay,
        upstream=options.upstream,
        upstream_model=options.upstream_model,
        tensor_parallel=options.tensor_parallel,
    )


async def run(options: argparse.Namespace, amqp_url: str, queue_type: str) -> None:
    """Lives as the node that `options` describe until SIGTERM or SIGINT."""
    node = Node(
        options.name,
        options.parent,
        options.model,
        POLICIES[options.policy](),
        make_engine(options),
        step_seconds=float(os.environ.get("CANOPY_STEP_SECONDS", STEP_SECONDS)),
        user_jobs=user_jobs(os.environ.get("CANOPY_USER_JOBS", "")),
    )
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)

    async def connect() -> Session:
        return await AmqpSession.open(amqp_url, f"node {options.name}", queue_type=queue_type)

    beats = asyncio.create_task(heartbeat.beat(), name="heartbeat")
    try:
        await live(node, connect, leave, wait=options.wait, standby=options.standby)
    finally:
        beats.cancel()
        await asyncio.gather(beats, return_exceptions=True)


def configure_logs() -> None:
    """To standard error; tracebacks without the values of variables, which are users' texts."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    processors = [*structlog.get_config()["processors"][:-1], renderer]
    structlog.configure(
        processors=processors, logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )


def main(arguments: list[str]) -> int:
    """Exit code: 0 after leaving in order, 3 if the node could not start (one line on standard error says why).

    A node whose engine hangs replaces its process by a new one, under the same pid.
    """
    options = parse(arguments)
    configure_logs()
    try:
        check_node_name(options.name)
        amqp_url = os.environ.get("CANOPY_AMQP_URL", "")
        if not amqp_url:
            raise BrokerError("CANOPY_AMQP_URL is not set: it says which broker to join")
        asyncio.run(run(options, amqp_url, os.environ.get("CANOPY_QUEUE_TYPE", "classic")))
    except (
        BadName,
        BadEnvironment,
        NameTaken,
        NoParent,
        Unwanted,
        BrokerError,
        EngineUnavailable,
    ) as error:
        print(f"node {options.name}: {error}", file=sys.stderr)
        return CANNOT_START
    except EngineStuck as error:
        print(
            f"node {options.name}: {error}; a new process takes over", file=sys.stderr, flush=True
        )
        again = [*arguments, "--wait", str(max(options.wait, RETURN_SECONDS))]
        os.execv(sys.executable, [sys.executable, "-m", "worker", *again])  # noqa: S606 - ourselves, no shell
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
