"""`python -m worker`: one node as a process. People start it with `./canopy node`."""

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from typing import NoReturn

from broker import heartbeat, logs
from broker.addresses import joined_node
from broker.amqp import AmqpSession
from broker.errors import AccessRefused, BrokerError, NotAdmitted
from broker.exit_status import REMOVED
from broker.session import JoinedNode, Session
from broker.tracing import make_tracer
from topology.dispatch import POLICIES
from topology.names import BadName
from worker import local_control, settings, status_file
from worker.engines.base import Engine
from worker.errors import EngineStuck, WorkerError
from worker.life import live
from worker.node import Departure, Node
from worker.settings import BrokerSettings, Settings

CANNOT_START = 3
NOT_ADMITTED = 1  # starting it again is of no use
TRACES_SECONDS = 2.0  # for the last spans to be sent
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
        task=options.task,
    )


async def run(node_settings: Settings) -> Departure | None:
    """Lives as that node until SIGTERM, SIGINT, or the departure that an operator asks for."""
    options, broker = node_settings.options, node_settings.broker
    tracer = make_tracer("canopy-node", options.name, os.environ)
    node = Node(
        options.name,
        options.parent,
        options.model,
        POLICIES[options.policy](),
        make_engine(options),
        step_seconds=node_settings.step_seconds,
        user_jobs=node_settings.user_jobs,
        tree_engine=options.tree_engine,
        tracer=tracer,
    )
    joined = _joined(broker, options)
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)

    async def connect() -> Session:
        try:
            return await AmqpSession.open(
                broker.amqp_url,
                f"node {options.name}",
                queue_type=broker.queue_type,
                joined=joined,
            )
        except AccessRefused as error:
            if joined is None:
                raise
            raise NotAdmitted(
                f"its token was revoked or has expired, or the directory does not admit it: {error}"
            ) from error

    # Code and settings never become garbage: scanning them would cost every job a little.
    gc.collect()
    gc.freeze()
    beside = [asyncio.create_task(heartbeat.send_heartbeats(), name="heartbeat")]
    if node_settings.status_file is not None:
        showing = status_file.keep(node_settings.status_file, lambda: node.status)
        beside.append(asyncio.create_task(showing, name="status file"))
    try:
        async with _local_control(node, node_settings):
            await live(node, connect, leave, wait=options.wait, standby=options.standby)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await asyncio.to_thread(tracer.close, TRACES_SECONDS)
    if node.departure.done():
        return node.departure.result()
    return None


def _joined(broker: BrokerSettings, options: argparse.Namespace) -> JoinedNode | None:
    """The node whose token this process has; None for one with more rights. Raises BadAddress."""
    name = joined_node(broker.amqp_url)
    return None if name is None else JoinedNode(name, options.model)


def _local_control(
    node: Node, node_settings: Settings
) -> contextlib.AbstractAsyncContextManager[None]:
    """What answers commands on this machine meanwhile."""
    if node_settings.sockets is None:
        return contextlib.nullcontext()
    log_file = str(node_settings.log_file or "")
    return local_control.serving(node, node_settings.sockets, log_file)


def main(arguments: list[str]) -> int:
    """Exit code: 0 after leaving in order, 3 with one line on standard error if it cannot start,
    NOT_ADMITTED if its token is not valid or its parent refuses it, REMOVED after an operator
    removed it from the tree.

    A node that an operator restarts, or whose engine hangs, replaces its process by a new one,
    under the same pid.
    """
    options = settings.parse(arguments)
    try:
        node_settings = settings.read(options, os.environ)
        logs.configure_node(node_settings.logs, options.name, node_settings.log_file)
        departure = asyncio.run(run(node_settings))
    except EngineStuck as error:
        _begin_anew(arguments, options, str(error))
    except NotAdmitted as error:
        print(f"node {options.name}: {error}", file=sys.stderr)
        return NOT_ADMITTED
    except (WorkerError, BrokerError, BadName) as error:
        print(f"node {options.name}: {error}", file=sys.stderr)
        return CANNOT_START
    if departure == "restart":
        _begin_anew(arguments, options, "an operator restarts it")
    if departure == "stop":
        print(f"node {options.name}: an operator removed it", file=sys.stderr)
        return REMOVED
    return 0


def _begin_anew(arguments: list[str], options: argparse.Namespace, reason: str) -> NoReturn:
    print(f"node {options.name}: {reason}; a new process takes over", file=sys.stderr, flush=True)
    again = [*arguments, "--wait", str(max(options.wait, RETURN_SECONDS))]
    os.execv(sys.executable, [sys.executable, "-m", "worker", *again])  # noqa: S606 - no shell


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
