"""Has nodes do what an operator asks, and waits until the tree shows it."""

import asyncio
import time
from contextlib import aclosing

import structlog

from api.errors import ApiError
from api.operate.audit.models import AuditEntry
from api.operate.audit.store import finish
from api.tree.watch import TreeWatch
from broker import tree_actions
from broker.client import Client
from broker.errors import BadAction, NoSuchNode, Refusal, Unavailable
from broker.gone import check_deletes
from broker.tree import Tree
from broker.tree_actions import CONFIRM_SECONDS, Action, Effect
from broker.wire import AnyControl, RemoveGone, Restart

LEVEL_SECONDS = 600.0  # for the nodes of one level to load their models again

log = structlog.get_logger("canopy.api")


class NodeActions:
    """Acts on nodes; owns the restarts of whole subtrees, which outlive their requests."""

    def __init__(self, client: Client, tree: TreeWatch) -> None:
        self._client = client
        self._tree = tree
        self._restarts: set[asyncio.Task[None]] = set()

    async def effect(self, action: Action, name: str, parent: str | None, whole: bool) -> Effect:
        """What the action would do now. Raises ApiError 400, 404 or 503."""
        try:
            tree = await self._tree.now()
            effect = tree_actions.effect(tree, action, name, parent=parent, whole=whole)
            if effect.gone:
                check_deletes(self._client.queue_type)
                _helper(tree, effect)
        except Refusal as error:
            raise ApiError(400, str(error), code="refused") from error
        except NoSuchNode as error:
            raise ApiError(404, str(error), field="name", code="not_found") from error
        except BadAction as error:
            raise ApiError(400, str(error), code="invalid_value") from error
        return effect

    async def act(self, effect: Effect) -> float:
        """Returns how many seconds it took until the tree showed the effect.

        Raises ApiError 404 or 503, or 504 if it has not happened within CONFIRM_SECONDS.
        """
        began, addressee = time.monotonic(), effect.node
        if effect.gone:
            addressee = await self._remove_gone(effect)
        else:
            await self.tell(effect.node, tree_actions.message(effect.action, effect.parent))
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                await self._until_happened(effect, began)
        except TimeoutError as error:
            raise ApiError(
                504,
                f"{addressee} was told, but the tree does not show it after "
                f"{CONFIRM_SECONDS:.0f} s: look at the node's state and its log",
                code="refused",
            ) from error
        return round(time.monotonic() - began, 2)

    async def _remove_gone(self, effect: Effect) -> str:
        """Has a node of another tree do it, whose name is returned. Raises ApiError 400, 503.

        A process of the API has no right to. The node ends the jobs that wait there, and deletes
        nothing of a node that lives.
        """
        helper = _helper(await self._tree.now(), effect)
        try:
            check_deletes(self._client.queue_type)
            exists = await self._client.control(helper, RemoveGone(nodes=effect.nodes[::-1]))
        except Refusal as error:
            raise ApiError(400, str(error), code="refused") from error
        except Unavailable as error:
            raise ApiError(503, str(error), code="unavailable") from error
        if not exists:
            raise ApiError(503, f"{helper} has just left: try again", code="unavailable")
        return helper

    async def tell(self, name: str, message: AnyControl) -> None:
        """Sends a control message. Raises ApiError 404 or 503."""
        try:
            exists = await self._client.control(name, message)
        except Unavailable as error:
            reason = f"the node cannot be told now: {error}"
            raise ApiError(503, reason, code="unavailable") from error
        if not exists:
            raise ApiError(404, f"there is no node {name!r}", field="name", code="not_found")

    async def restart_subtree(self, effect: Effect, entry: AuditEntry) -> None:
        """Restarts a subtree from its leaves up, in the background. `entry` gets the result."""
        tree = await self._tree.now()
        levels = tree_actions.levels(tree, effect.node)
        task = asyncio.create_task(self._restart_levels(levels, entry), name="subtree restart")
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def stop(self) -> None:
        """Ends what runs in the background; nodes that were told to restart still do."""
        for task in self._restarts:
            task.cancel()
        await asyncio.gather(*self._restarts, return_exceptions=True)

    async def _restart_levels(self, levels: list[list[str]], entry: AuditEntry) -> None:
        restarted = 0
        try:
            for level in levels:
                began = time.monotonic()
                for name in level:
                    await self.tell(name, Restart())
                async with asyncio.timeout(LEVEL_SECONDS):
                    await self._until_back(level, began)
                restarted += len(level)
        except ApiError as error:
            await finish(entry, f"ended after {restarted} nodes: {error.message}")
        except TimeoutError:
            waiting = ", ".join(level)
            await finish(entry, f"ended after {restarted} nodes: {waiting} did not come back")
        else:
            await finish(entry, f"restarted {restarted}")

    async def _until_happened(self, effect: Effect, began: float) -> None:
        async with aclosing(self._tree.follow()) as trees:
            async for tree in trees:
                seconds = time.monotonic() - began
                if tree_actions.has_happened(
                    tree,
                    effect.action,
                    effect.node,
                    parent=effect.parent,
                    seconds=seconds,
                    gone=effect.gone,
                ):
                    return

    async def _until_back(self, level: list[str], began: float) -> None:
        async with aclosing(self._tree.follow()) as trees:
            async for tree in trees:
                seconds = time.monotonic() - began
                if all(tree_actions.is_back(tree, name, seconds) for name in level):
                    return


def _helper(tree: Tree, effect: Effect) -> str:
    """The node that removes those that are gone. Raises ApiError 400 if no tree lives."""
    helper = tree_actions.helper(tree, effect.nodes)
    if helper is None:
        raise ApiError(
            400,
            "no node serves that could remove it; where Canopy runs, this does: "
            f"./canopy remove {effect.node}",
            code="refused",
        )
    return helper
