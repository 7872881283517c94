"""The autoscaler: looks at every model with a rule, and has hosts start or end a node.

It runs in the recorder's process alone (api/operate/recorder). When another process becomes the
recorder, that one waits for one cool-down. Which nodes the autoscaler has started, and which of
them it is ending, is stored: it ends no other ones, and the next recorder carries on.
"""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import structlog

from api.errors import ApiError
from api.operate.audit.store import record_system
from api.operate.hosts.hosts import Hosts
from api.operate.hosts.schemas import StartBody
from api.operate.models import load, scaled, store
from api.operate.models.load import ScaledNode
from api.operate.nodes.actions import NodeActions
from api.tree.watch import TreeWatch
from broker import tree_actions
from broker.errors import NoSuchNode
from broker.operator_messages import BrokerOverview
from broker.wire import Drain, Resume
from topology.autoscale import Memory, Rule, decide

DRAIN_SECONDS = 900.0  # for the jobs of a node that is to end

_UNANSWERED = 503  # the host may start the node all the same; if not, its row goes as a lost one's

WHO = "autoscaler"
LEFT_OVER = "another process had begun to end it"
log = structlog.get_logger("canopy.api")


@dataclass(slots=True)
class _Model:
    """What is remembered about a model, and the change under way."""

    memory: Memory
    change: "asyncio.Task[None] | None" = None

    @property
    def changes(self) -> bool:
        return self.change is not None and not self.change.done()


class Autoscaler:
    """See the module."""

    def __init__(self, tree: TreeWatch, hosts: Hosts, nodes: NodeActions) -> None:
        self._tree = tree
        self._hosts = hosts
        self._nodes = nodes
        self._models: dict[str, _Model] = {}
        self._starting: set[str] = set()  # nodes whose host has not answered yet

    async def look(self, overview: BrokerOverview) -> None:
        """One of the recorder's writers: decides for every model with a rule."""
        if overview.problem:
            return
        rules, nodes = await store.stored_rules(), await self._own_nodes()
        leaving = {node.model for node in nodes if node.leaving}
        for model in self._models.keys() - rules.keys() - leaving:
            if not self._models[model].changes:  # one under way is carried to its end
                del self._models[model]
        for model in rules.keys() | leaving:
            own = [node for node in nodes if node.model == model]
            await self._decide(model, rules.get(model), own)

    async def stop(self) -> None:
        """Ends what is under way: a node that drains takes jobs again."""
        changes = [known.change for known in self._models.values() if known.change is not None]
        for change in changes:
            change.cancel()
        await asyncio.gather(*changes, return_exceptions=True)
        self._models.clear()

    async def _own_nodes(self) -> list[ScaledNode]:
        nodes = await scaled.stored()
        known = [node for node in nodes if node.name not in self._starting]
        gone = load.gone(self._hosts.states(), known)
        if gone:
            await scaled.remove([node.name for node in gone])
        return [node for node in nodes if node not in gone]

    async def _decide(self, model: str, rule: Rule | None, own: Sequence[ScaledNode]) -> None:
        now = time.monotonic()
        known = self._models.setdefault(model, _Model(Memory(changed=now)))
        if known.changes:
            return
        for node in own:
            if node.leaving:  # the former recorder did not come to the end of it
                self._begin(known, self._stop_node(node, LEFT_OVER))
                return
        if rule is None:
            return
        tree, states = await self._tree.now(), list(self._hosts.states().values())
        decision = decide(rule, load.load_of(tree, states, model, own), known.memory, now)
        known.memory = decision.memory
        if decision.step == "grow":
            self._begin(known, self._start_node(model, decision.reason))
        chosen = load.superfluous(tree, model, own)
        if decision.step == "shrink" and chosen is not None:
            self._begin(known, self._stop_node(chosen, decision.reason))

    def _begin(self, known: _Model, change: Coroutine[None, None, None]) -> None:
        known.change = asyncio.create_task(change, name="autoscaler")
        known.change.add_done_callback(_report_failure)

    async def _start_node(self, model: str, reason: str) -> None:
        try:
            result = await self._grow(model)
        except ApiError as error:
            result = error.message
        await record_system(WHO, "start node", model, reason, result)

    async def _stop_node(self, node: ScaledNode, reason: str) -> None:
        try:
            result = await self._end(node)
        except ApiError as error:
            result = error.message
        except TimeoutError:
            result = "its jobs did not end in time: it takes jobs again"
        await record_system(WHO, "stop node", node.model, reason, result)

    async def _grow(self, model: str) -> str:
        host = load.host_for(self._hosts.states().values(), model)
        if host is None:
            return "no host with an agent has room for it"
        stored = {node.name for node in await scaled.stored()}
        tree = await self._tree.now()
        name = self._hosts.free_name(tree, stored | self._starting)
        self._starting.add(name)
        try:
            return await self._start_on(host, name, model)
        finally:
            self._starting.discard(name)

    async def _start_on(self, host: str, name: str, model: str) -> str:
        """Stores the node first: whatever happens then, it is known whose it is."""
        await scaled.put(ScaledNode(name=name, model=model, host=host))
        try:
            started = await self._hosts.start(host, StartBody(model=model, name=name))
        except ApiError as error:
            if error.status != _UNANSWERED:
                await scaled.remove([name])
            raise
        return f"{host} starts {name} below {started.parent}"

    async def _end(self, node: ScaledNode) -> str:
        """Drains the node first: no job is moved for it."""
        await scaled.put(replace(node, leaving=True))
        try:
            await self._nodes.tell(node.name, Drain())
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._until_drained(node.name)
            await self._hosts.stop(node.host, node.name)
        except (TimeoutError, ApiError, asyncio.CancelledError):
            await scaled.put(replace(node, leaving=False))
            await self._nodes.tell(node.name, Resume())
            raise
        await scaled.remove([node.name])
        return f"{node.host} ends {node.name}"

    async def _until_drained(self, name: str) -> None:
        async with aclosing(self._tree.follow()) as trees:
            async for tree in trees:
                try:
                    node = tree_actions.find(tree, name)
                except NoSuchNode:
                    return
                if node["state"] in ("drained", "down"):
                    return


def _report_failure(change: "asyncio.Task[None]") -> None:
    """Refusals are in the audit log; what else ends a change, a lost database say, is here."""
    if not change.cancelled() and change.exception() is not None:
        log.error("a change of the autoscaler failed", exc_info=change.exception())
