"""Loading a model on a host, and stopping one: a root and its nodes, as one action."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import partial

from api.errors import ApiError
from api.operate.audit.models import AuditEntry
from api.operate.audit.store import finish
from api.operate.hosts.hosts import Hosts
from api.operate.hosts.schemas import StartBody
from api.operate.nodes.actions import NodeActions
from api.tree.watch import TreeWatch
from broker import tree_actions
from broker.host_messages import StartNode
from broker.host_watch import new_number
from broker.tree import Tree
from broker.wire import Stop
from topology import names

ROOT_SECONDS = 30.0  # for a root, which loads nothing, to serve
LEAVE_SECONDS = 30.0  # for the nodes of a tree to leave


class ModelTrees:
    """Owns the loads and stops that are under way, which outlive their requests."""

    def __init__(
        self, tree: TreeWatch, hosts: Hosts, nodes: NodeActions, default: str | None
    ) -> None:
        self._tree = tree
        self._hosts = hosts
        self._nodes = nodes
        self._default = default
        self._tasks: set[asyncio.Task[str | None]] = set()

    async def load(self, host: str, body: StartBody, entry: AuditEntry) -> None:
        """Has the host start the model's root, then a node. Raises ApiError 400, 404, 409, 503.

        Returns when the host has accepted the root; `entry` gets the result of the rest.
        """
        tree = await self._tree.now()
        if _roots(tree, body.model):
            message = f"{body.model} is loaded already: start more nodes of it instead"
            raise ApiError(409, message, field="model", code="refused")
        root = names.root_name(body.model, self._default or "")
        request = StartNode(number=new_number(), node=root, model=body.model)
        await self._hosts.request(host, request)
        self._run(self._start_first_node(host, body, root, entry))

    async def stop(self, model: str, entry: AuditEntry) -> None:
        """Has the model's nodes leave, its root last. Raises ApiError 404 if there are none."""
        tree = await self._tree.now()
        roots = _roots(tree, model)
        if not roots:
            message = f"no tree serves {model!r}"
            raise ApiError(404, message, field="model", code="not_found")
        self._run(self._stop_tree(model, roots, entry))

    async def settled(self) -> list[str]:
        """Returns once nothing is under way: the reasons why loads and stops have failed."""
        reasons = await asyncio.gather(*self._tasks)
        return [reason for reason in reasons if reason is not None]

    async def close(self) -> None:
        """Ends what is under way; what was started keeps running."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start_first_node(
        self, host: str, body: StartBody, root: str, entry: AuditEntry
    ) -> str | None:
        """Why it failed; None if the host starts the node."""
        try:
            async with asyncio.timeout(ROOT_SECONDS):
                await self._until(lambda tree: root in _roots(tree, body.model))
            started = await self._hosts.start(host, body.model_copy(update={"parent": root}))
        except ApiError as error:
            failure = error.message
        except TimeoutError:
            failure = f"the root {root} does not serve after {ROOT_SECONDS:.0f} s"
        else:
            await finish(entry, f"{host} starts {root} and {started.node}")
            return None
        await finish(entry, failure)
        return failure

    async def _stop_tree(self, model: str, roots: list[str], entry: AuditEntry) -> str | None:
        """The nodes leave from the leaves up, and hand their jobs on; those at the root stay.

        Returns why it failed.
        """
        began, ended = time.monotonic(), 0
        try:
            for root in roots:
                for level in tree_actions.levels(await self._tree.now(), root):
                    for name in level:
                        await self._nodes.tell(name, Stop())
                    async with asyncio.timeout(LEAVE_SECONDS):
                        await self._until(partial(_are_gone, level))
                    ended += len(level)
        except ApiError as error:
            failure = f"ended after {ended} nodes: {error.message}"
        except TimeoutError:
            failure = f"ended after {ended} nodes: the next did not leave in time"
        else:
            await finish(entry, f"ended {ended} nodes in {time.monotonic() - began:.0f} s")
            return None
        await finish(entry, failure)
        return failure

    async def _until(self, holds: Callable[[Tree], bool]) -> None:
        async with aclosing(self._tree.follow()) as trees:
            async for tree in trees:
                if holds(tree):
                    return

    def _run(self, work: Coroutine[None, None, str | None]) -> None:
        task = asyncio.create_task(work, name="model's tree")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _roots(tree: Tree, model: str) -> list[str]:
    """The model's live roots."""
    roots = []
    for node in tree["nodes"]:
        if node["model"] == model and tree_actions.is_root(node) and node["state"] != "down":
            roots.append(node["name"])
    return roots


def _are_gone(names: list[str], tree: Tree) -> bool:
    states = {node["name"]: node["state"] for node in tree["nodes"]}
    return all(states.get(name, "down") == "down" for name in names)
