"""The tree as the broker and the nodes describe it, read for one command."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from broker import snapshot
from broker.errors import (
    AccessRefused,
    BadChange,
    BrokerError,
    NoSuchLetter,
    NoSuchNode,
    Refusal,
)
from broker.gone import check_deletes
from broker.node_state import NodeState
from broker.node_states import warnings_of_clocks
from broker.tree import edges_of_part
from broker.tree import tree as describe
from broker.wire import AnyControl
from cli import addresses, environment, home, instance, local_nodes
from cli.errors import HiddenError, StateError, UnreachableError, UsageError
from cli.local_nodes import LocalNode

_PROBLEMS_SECONDS = 4.0  # less than `status` waits

Node = Mapping[str, Any]
Tree = dict[str, Any]
T = TypeVar("T")


def broker_addresses() -> tuple[str, str]:
    """The AMQP and the management address: the environment's broker, else this instance's.

    Raises StateError without either.
    """
    amqp_url, management_url = addresses.of_environment()
    if amqp_url:
        return amqp_url, management_url
    record = instance.running(home.read())
    return record["amqp"]["admin"], record["management"]


def read_tree() -> Tree:
    """The tree, as `./canopy tree --json` prints it. Raises CliError where it cannot be read.

    Without the management API it is what the nodes tell; where this machine's user of the broker
    may not hear that, or knows of no broker, the nodes that run here.
    """
    if reads_local_nodes():
        return local_tree()
    amqp_url, management_url = broker_addresses()
    try:
        return run(_read_tree(amqp_url, management_url))
    except HiddenError:
        if not local_nodes.running(home.read()):
            raise
        return local_tree()


async def _read_tree(amqp_url: str, management_url: str) -> Tree:
    if management_url:
        look = await snapshot.take_snapshot(amqp_url, management_url)
    else:
        look = await _told(amqp_url)
    differences = look.clock_differences
    return describe(look.edges, look.states, look.depths, time.time(), differences, look.lost)


async def _told(amqp_url: str) -> snapshot.Snapshot:
    try:
        return await snapshot.take_told(amqp_url)
    except AccessRefused as error:
        raise HiddenError(f"This user of the broker may not read the tree: {error}") from error


def reads_local_nodes() -> bool:
    """Whether only the nodes that run here can be asked: no broker is known, as after `join`."""
    amqp_url, _ = addresses.of_environment()
    if amqp_url or instance.read(home.read()) is not None:
        return False
    return bool(local_nodes.running(home.read()))


def local_tree() -> Tree:
    """The nodes that run here, below parents of which only the names are known."""
    nodes = local_nodes.running(home.read())
    states = _states_of(nodes)
    tree = describe(edges_of_part(states), states, {}, time.time())
    logs = {node.name: node.log for node in nodes}
    for node in tree["nodes"]:
        node["parent"] = states[node["name"]].parent
        node["log_file"] = logs[node["name"]]
    return tree


def local_states() -> dict[str, NodeState]:
    """Of the nodes that run here."""
    return _states_of(local_nodes.running(home.read()))


def _states_of(nodes: Iterable[LocalNode]) -> dict[str, NodeState]:
    states = {}
    for node in nodes:
        with contextlib.suppress(msgspec.ValidationError):  # of another release
            states[node.name] = msgspec.convert(node.state, NodeState)
    return states


def find(tree: Mapping[str, Any], name: str) -> Node:
    """The node of that name. Raises StateError if none is registered."""
    for node in tree["nodes"]:
        if node["name"] == name:
            match: Node = node
            return match
    raise StateError(f"no node named {name!r} is registered (./canopy tree lists them)")


def send(node: str, message: AnyControl) -> None:
    """Puts a control message into the node's inbox; a node that runs here hears it here.

    Raises CliError.
    """
    if reads_local_nodes():
        local_nodes.send(home.read(), node, msgspec.to_builtins(message)["kind"])
        return
    amqp_url, _ = broker_addresses()
    run(snapshot.send_control(amqp_url, node, message))


def check_removes_gone() -> None:
    """Raises StateError where what the broker keeps of nodes that are gone has to stay."""
    try:
        check_deletes(environment.read().queue_type)
    except Refusal as error:
        raise StateError(str(error)) from error


def remove_gone(nodes: Iterable[str]) -> None:
    """Deletes what the broker keeps of nodes that are gone. Raises CliError."""
    amqp_url, _ = broker_addresses()
    queue_type = environment.read().queue_type
    run(snapshot.remove_gone_nodes(amqp_url, nodes, queue_type))


async def problems(amqp_url: str, management_url: str | None) -> list[str]:
    """The nodes' warnings, a line each; none without a management API."""
    if not management_url:
        return []
    try:
        async with asyncio.timeout(_PROBLEMS_SECONDS):
            tree = await _read_tree(amqp_url, management_url)
    except (BrokerError, TimeoutError) as error:
        return [f"the tree cannot be read: {error or 'the broker does not answer'}"]
    lines = []
    for node in tree["nodes"]:
        text = warning(node)
        if text:
            lines.append(f"{printable(node['name'])}: {printable(text)}")
    return lines


def warning(node: Node) -> str:
    """What an operator should know about a node, a wrong clock included; "" if all is well."""
    warnings = warnings_of_clocks({node["name"]: node["clock_difference"] or 0.0})
    if node["warning"]:
        warnings.append(node["warning"])
    return "; ".join(warnings)


def printable(text: object) -> str:
    """Replaces control characters: most text comes from other machines and goes to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs work on the broker to its end. Raises UnreachableError, StateError, UsageError."""
    try:
        return asyncio.run(work)
    except BadChange as error:
        raise UsageError(str(error)) from error
    except NoSuchLetter as error:
        raise StateError(
            f"There is no dead letter {error.letter_id!r} (./canopy dead list shows them)"
        ) from error
    except (NoSuchNode, Refusal) as error:
        raise StateError(str(error)) from error
    except BrokerError as error:
        raise UnreachableError(str(error)) from error
