"""`host list|start|stop`: hosts with an agent, by the API's program, which records what is done."""

from typing import NoReturn

import click

from cli import home as homes
from cli import options, registry
from cli.home import become_module


@click.command("list")
@options.as_json
def list_hosts(as_json: bool) -> None:
    """List the hosts with an agent, and the nodes there."""
    become_operator("host", ["list"], as_json)


@click.command("start")
@click.argument("host")
@click.argument("model")
@click.option("--name", help="The node's; default: the first of n1, n2, ... that is free.")
@click.option("--parent", metavar="P", help="The node to hang below; default: where it fits.")
@click.option("--slots", type=click.IntRange(1, 1000), help="Answers that it writes at once.")
@click.option("--device", default="", help="cpu, cuda:0, ...; default: the agent's choice.")
@options.as_json
def start(
    host: str,
    model: str,
    name: str | None,
    parent: str | None,
    slots: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Start one more node on a host.

    MODEL is one that the host allows. ./canopy host list shows how the start goes.
    """
    words = ["start", host, model, "--device", device]
    for option, value in (("--name", name), ("--parent", parent), ("--slots", slots)):
        if value is not None:
            words += [option, str(value)]
    become_operator("host", words, as_json)


@click.command("stop")
@click.argument("name")
@options.as_json
def stop(name: str, as_json: bool) -> None:
    """End a node on a host for good.

    It hands its jobs to its parent first. For nodes that no agent runs: ./canopy remove NAME
    """
    become_operator("host", ["stop", name], as_json)


def become_operator(command: str, words: list[str], as_json: bool) -> NoReturn:
    """Becomes the API's program for that command. Raises CliError if nothing runs."""
    flags = ["--json"] if as_json else []
    amqp_url, management_url = registry.broker_addresses()
    env = {
        "CANOPY_HOME": str(homes.read().path),
        "CANOPY_AMQP_URL": amqp_url,
        "CANOPY_MANAGEMENT_URL": management_url or "",
    }
    become_module("api", command, *flags, *words, **env)
