"""Starts and stops nodes on hosts: chooses name and parent, then asks the host's agent."""

import asyncio
from collections.abc import AsyncGenerator, Collection
from typing import Any

from api.errors import ApiError
from api.operate.hosts import schemas
from api.operate.hosts.schemas import StartBody, Started
from api.tree.watch import TreeWatch
from broker import tree_actions
from broker.client import Client
from broker.errors import BadAction, NoSuchHost, NoSuchNode, Refusal, Unavailable
from broker.host_messages import (
    SILENT_SECONDS,
    AnyHostRequest,
    HostState,
    StartNode,
    StopNode,
)
from broker.host_watch import new_number
from broker.tree import Tree
from topology.placement import best_parent, free_name

_FEEDS = ("idle", "busy")


class Hosts:
    """What operators, and the autoscaler, do on hosts."""

    def __init__(self, client: Client, tree: TreeWatch) -> None:
        self._client = client
        self._tree = tree

    def states(self) -> dict[str, HostState]:
        """Every host with an agent, by name."""
        return self._client.hosts.states()

    async def follow(self) -> AsyncGenerator[list[dict[str, Any]]]:
        """The hosts, at once and whenever one of them reports its state."""
        while True:
            changes = asyncio.ensure_future(self._client.hosts.changed())
            try:
                yield [schemas.host(state) for state in self.states().values()]
                await asyncio.wait([changes], timeout=SILENT_SECONDS / 2)
            finally:
                changes.cancel()

    async def start(self, host: str, body: StartBody) -> Started:
        """Has the host start a node. Raises ApiError 400, 404, 409 or 503."""
        tree = await self._tree.now()
        name = body.name or free_name(self._names(tree))
        if body.name is not None and body.name in self._names(tree):
            raise ApiError(409, f"there is a node {name!r} already", field="name", code="refused")
        parent = body.parent or parent_for(tree, body.model)
        _check_parent(tree, parent, body.model)
        await self.request(
            host,
            StartNode(
                number=new_number(),
                node=name,
                model=body.model,
                parent=parent,
                slots=body.slots,
                device=body.device,
            ),
        )
        return Started(host=host, node=name, parent=parent)

    def free_name(self, tree: Tree, reserved: Collection[str]) -> str:
        """A name for one more node, which is none of the `reserved` ones."""
        return free_name(self._names(tree).union(reserved))

    async def stop(self, host: str, name: str) -> None:
        """Has the host end a node for good. Raises ApiError 400, 404 or 503."""
        if name in (await self._tree.now())["roots"]:
            message = f"{name!r} is the entrance of a tree; stop its model instead"
            raise ApiError(400, message, field="name", code="refused")
        await self.request(host, StopNode(number=new_number(), node=name))

    async def request(self, host: str, request: AnyHostRequest) -> None:
        """Asks the agent; returns when it has accepted. Raises ApiError 400, 404 or 503."""
        try:
            await self._client.hosts.request(host, request)
        except NoSuchHost as error:
            raise ApiError(404, str(error), field="host", code="not_found") from error
        except Refusal as error:
            raise ApiError(400, str(error), code="refused") from error
        except Unavailable as error:
            raise ApiError(503, str(error), code="unavailable") from error

    def host_of(self, name: str) -> str:
        """The host whose agent runs that node. Raises ApiError 404."""
        for host, state in self.states().items():
            if any(node.name == name for node in state.nodes):
                return host
        raise ApiError(404, f"no agent runs the node {name!r}", field="name", code="not_found")

    def _names(self, tree: Tree) -> set[str]:
        names = {node["name"] for node in tree["nodes"]}
        for state in self.states().values():
            names.update(node.name for node in state.nodes)
        return names


def parent_for(tree: Tree, model: str) -> str:
    """The node below which one more of that model fits. Raises ApiError 404 without a tree."""
    members = [node for node in tree["nodes"] if node["model"] == model]
    roots = [node["name"] for node in members if tree_actions.is_root(node)]
    if not roots:
        reason = f"no tree serves {model!r}: load the model first"
        raise ApiError(404, reason, field="model", code="not_found")
    children = {
        node["name"]: node["children"]
        for node in members
        if node["state"] in _FEEDS and not node["joined"]
    }
    return best_parent(roots[0], children)


def _check_parent(tree: Tree, parent: str, model: str) -> None:
    try:
        node = tree_actions.find(tree, parent)
    except NoSuchNode as error:
        raise ApiError(404, str(error), field="parent", code="not_found") from error
    if node["model"] != model:
        reason = f"{parent!r} serves {node['model']}, not {model}"
        raise ApiError(400, f"parent: {reason}", field="parent", code="invalid_value")
    try:
        tree_actions.check_parent(node)
    except BadAction as error:
        raise ApiError(400, f"parent: {error}", field="parent", code="invalid_value") from error
