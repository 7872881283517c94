"""`python -m worker`: one node as a process. People start it with `./canopy node`."""

import argparse
import asyncio
import os
import signal
import sys

import structlog

from broker import heartbeat
from broker.amqp import AmqpSession
from broker.errors import BrokerError
from broker.session import Session
from topology.dispatch import POLICIES
from topology.names import BadName
from worker import settings
from worker.engines.base import Engine
from worker.errors import EngineStuck, WorkerError
from worker.life import live
from worker.node import Node
from worker.settings import Settings

CANNOT_START = 3
RETURN_SECONDS = 60.0  # a node that restarted itself waits so long for its parent


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


async def run(node_settings: Settings) -> None:
    """Lives as that node until SIGTERM or SIGINT."""
    options, broker = node_settings.options, node_settings.broker
    node = Node(
        options.name,
        options.parent,
        options.model,
        POLICIES[options.policy](),
        make_engine(options),
        step_seconds=node_settings.step_seconds,
        user_jobs=node_settings.user_jobs,
    )
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)

    async def connect() -> Session:
        return await AmqpSession.open(
            broker.amqp_url, f"node {options.name}", queue_type=broker.queue_type
        )

    heartbeats = asyncio.create_task(heartbeat.send_heartbeats(), name="heartbeat")
    try:
        await live(node, connect, leave, wait=options.wait, standby=options.standby)
    finally:
        heartbeats.cancel()
        await asyncio.gather(heartbeats, return_exceptions=True)


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
    """Exit code: 0 after leaving in order, 3 with one line on standard error if it cannot start.

    A node whose engine hangs replaces its process by a new one, under the same pid.
    """
    options = settings.parse(arguments)
    configure_logs()
    try:
        asyncio.run(run(settings.read(options, os.environ)))
    except EngineStuck as error:
        print(
            f"node {options.name}: {error}; a new process takes over", file=sys.stderr, flush=True
        )
        again = [*arguments, "--wait", str(max(options.wait, RETURN_SECONDS))]
        os.execv(sys.executable, [sys.executable, "-m", "worker", *again])  # noqa: S606 - ourselves, no shell
    except (WorkerError, BrokerError, BadName) as error:
        print(f"node {options.name}: {error}", file=sys.stderr)
        return CANNOT_START
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
