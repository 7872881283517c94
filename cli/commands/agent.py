"""`agent`: the process on a host that starts and stops nodes there on request."""

import asyncio
import os
import signal
from functools import partial
from typing import Any

import click

from broker.amqp import AmqpSession
from broker.errors import BrokerError
from broker.session import Session
from cli import environment, lock, options, plan, processes
from cli import home as homes
from cli.commands.node import tree_to_join
from cli.commands.up import arguments_by_name
from cli.console import say
from cli.errors import UnreachableError, UsageError
from cli.home import PRIVATE_UMASK, Home
from cli.host.agent import HostAgent, default_name
from cli.host.allowed import Allowed
from cli.host.nodes import HostNodes
from cli.plan import Request
from cli.prepare import gpus
from cli.prepare.model import Model
from cli.rabbitmq import Broker
from cli.supervisor import Supervisor
from topology.names import BadName, check_node_name


@click.command()
@click.option("--name", metavar="HOST", help="Unlike any other host's; default: the machine's.")
@click.option(
    "--engine",
    default="transformers",
    show_default=True,
    help="Of the nodes here: transformers, openai (see --upstream) or echo.",
)
@options.allow_model
@click.option(
    "--allow-device",
    multiple=True,
    metavar="DEVICE",
    help="cpu, cuda:0, ...; default: any. Repeatable.",
)
@options.max_nodes
@click.option("--token-delay", type=click.FloatRange(min=0), help="echo: seconds between words.")
@options.upstream
@options.upstream_model
def agent(
    name: str | None,
    engine: str,
    allow_model: tuple[str, ...],
    allow_device: tuple[str, ...],
    max_nodes: int,
    token_delay: float | None,
    upstream: str | None,
    upstream_model: str | None,
) -> None:
    """Let operators start and stop nodes on this machine.

    They do so on the dashboard or with ./canopy host, and only as far as the options here allow.
    The broker is CANOPY_AMQP_URL's, or that of the instance that runs here; `up` has an agent of
    its own. The nodes end with their agent.
    """
    options.check_engine(engine)
    options.check_engine_options(engine, upstream, 1)
    host = name or default_name()
    try:
        check_node_name(host)
    except BadName as error:
        raise UsageError(str(error)) from error
    if not allow_model:
        raise UsageError("Say which models may be started here: --allow-model MODEL")
    allowed = Allowed(
        models=arguments_by_name([Model(argument) for argument in allow_model]),
        devices=allow_device,
        max_nodes=max_nodes,
    )
    request = Request(
        models=dict.fromkeys(allowed.models),
        engine=engine,
        token_delay=token_delay,
        upstream=upstream,
        upstream_model=upstream_model,
        gpus=gpus.count(),
        max_nodes=max_nodes,
    )
    _run(host, request, allowed)


def _run(host: str, request: Request, allowed: Allowed) -> None:
    shared = homes.read()
    amqp_url, _ = tree_to_join(shared)
    home = shared.of_agent(host)
    os.umask(PRIVATE_UMASK)
    with lock.hold(home):
        for leftover in processes.end_leftovers(home):
            say(f"ended {leftover}, left over from an agent that was killed")
        try:
            asyncio.run(_live(host, request, allowed, amqp_url, (home, shared)))
        except BrokerError as error:
            raise UnreachableError(str(error)) from error


async def _live(
    host: str, request: Request, allowed: Allowed, amqp_url: str, homes: tuple[Home, Home]
) -> None:
    """Runs until a signal; then the nodes leave in order. `homes`: the agent's, and the models'."""
    own, shared = homes
    supervisor = Supervisor(own, None, say)

    async def connect() -> Session:
        queue_type = environment.read().queue_type
        return await AmqpSession.open(amqp_url, f"agent {host}", queue_type=queue_type)

    agent = HostAgent(host, request.engine, connect, say)
    nodes = HostNodes(
        supervisor,
        shared,
        partial(plan.added_node, request, shared, Broker.elsewhere(amqp_url, "")),
        allowed,
        needs_files=request.engine == "transformers",
        folders={},
        drills=environment.read().drills == "1",
        on_change=agent.touch,
    )
    life = asyncio.create_task(agent.run(nodes, patient=False), name="agent")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, life.cancel)
    say(f"the agent of {host} serves; Ctrl-C ends it and its nodes")
    try:
        ends: list[asyncio.Future[Any]] = [life, supervisor.failure]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if supervisor.failure.done():
            raise supervisor.failure.result()
        if not life.cancelled():
            life.result()
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        await nodes.close()
        await supervisor.stop()
