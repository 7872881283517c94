"""A node's place in the tree: its parent, its children, and what happens when one of them dies or comes back."""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from broker.node import NodePort, NoParent
from broker.session import NotFound
from broker.wire import Ancestors, Attach, Capacity, Leave
from topology.dispatch import Child, Dispatcher
from worker.background import Background

log = structlog.get_logger()


class Relatives:
    """Keeps the edges to parent and children. `changed()` is called when the children or the parent have changed."""

    def __init__(
        self,
        name: str,
        parent: str | None,
        dispatcher: Dispatcher,
        background: Background,
        changed: Callable[[], None],
    ) -> None:
        self.parent = parent
        self.parent_there = parent is not None  # as far as the last attempt to reach it told
        self.port: NodePort
        self._name = name
        self._home = parent  # where the node belongs; `parent` differs while that node is away
        self._above: tuple[str, ...] = ()  # the parent's ancestors, nearest first
        self._dispatcher = dispatcher
        self._background = background
        self._changed = changed
        self._adopted: set[str] = set()  # dead children whose queues this node empties

    # ---- what they say

    def on_capacity(self, told: Capacity) -> None:
        """A child's counters; also how a new child, or one that is back, introduces itself."""
        if told.node in self._adopted:
            self._adopted.discard(told.node)
            self._background.run(self.port.stop_serving(told.node))
        if self._dispatcher.child(told.node) is None:
            self._tell_ancestors(told.node)
        self._dispatcher.put_child(
            Child(told.node, told.slots, told.free, told.received, told.finished, told.accepting)
        )
        self._changed()

    def on_leave(self, told: Leave) -> None:
        """A child hangs elsewhere now, or has ended in order."""
        self._dispatcher.remove_child(told.node)

    def on_ancestors(self, told: Ancestors) -> None:
        """Who is above the parent."""
        self._above = told.names

    def on_attach(self, told: Attach) -> None:
        """Somebody wants this node below another parent."""
        if told.for_good:
            self._home = told.parent
        self._background.run(self._move(told.parent))

    def on_gone(self, name: str) -> None:
        """A child died: nothing more is sent to it, and its queue is emptied from here. The parent died: the nearest
        living ancestor takes its place until it is back.
        """
        if name == self.parent:
            self.parent_there = False
            self._background.run(self._find_parent())
        if self._dispatcher.child(name) is not None:
            log.warning("child is gone; taking over its queue", node=self._name, child=name)
            self._dispatcher.remove_child(name)
            self._adopted.add(name)
            self._background.run(self._adopt(name))

    # ---- what they are told

    def hello(self, capacity: Capacity) -> None:
        """Tells the parent the counters, which is how it knows this child, and this node that its parent is there."""
        if self.parent is None:
            return
        parent = self.parent

        def told(outcome: asyncio.Future[bool]) -> None:
            if outcome.cancelled() or outcome.exception() is not None or parent != self.parent:
                return
            back = outcome.result() and not self.parent_there
            self.parent_there = outcome.result()
            if back:
                self._changed()  # a draining node can hand its jobs up again

        self.port.tell(parent, capacity).add_done_callback(told)

    def farewell(self) -> None:
        """This node leaves in order: its children hang below its parent until it is back."""
        if self.parent is not None:
            for child in self._dispatcher.children:
                self.port.tell(child.name, Attach(parent=self.parent, for_good=False))

    # ---- what is looked after with every beat

    async def tend(self) -> None:
        """Repeats what heals: who is above the children, the own edge, the way home, the queues of dead children."""
        for child in self._dispatcher.children:
            self._tell_ancestors(child.name)
        await self._bury_adopted()
        await self.go_home()
        if self.parent is not None:
            with contextlib.suppress(NoParent):
                await self.port.hang_below(self.parent)

    async def go_home(self) -> None:
        """Back below the node it belongs below, once that is there again (and not below this one)."""
        if self._home is None or self._home == self.parent or self._dispatcher.child(self._home) is not None:
            return
        if await self.port.is_present(self._home):
            await self._move(self._home)

    def forget(self) -> None:
        """The session is over: children introduce themselves again."""
        self._adopted.clear()
        for child in self._dispatcher.children:
            self._dispatcher.remove_child(child.name)

    def _tell_ancestors(self, child: str) -> None:
        above = () if self.parent is None else (self.parent, *self._above)
        self.port.tell(child, Ancestors(names=above))

    async def _move(self, parent: str) -> None:
        """Hangs this node below another parent; the old edge goes only once the new one stands."""
        await self.port.hang_below(parent)
        old, self.parent, self.parent_there = self.parent, parent, True
        self._changed()
        if old is not None and old != parent:
            await self.port.unhang(old)
            await self.port.tell(old, Leave(node=self._name))

    async def _find_parent(self) -> None:
        """Hangs below the nearest living ancestor. With none alive it stays: the parent may come back."""
        for ancestor in self._above:
            if await self.port.is_present(ancestor):
                log.warning("the parent is gone; hanging below an ancestor", node=self._name, parent=ancestor)
                await self._move(ancestor)
                return

    async def _adopt(self, child: str) -> None:
        """Removes the edge to a dead child and takes its jobs as if they had come to this node."""
        try:
            await self.port.cut_off(child)
            await self.port.serve(child, prefetch=self._dispatcher.window())
        except NotFound:  # it removed the queue itself
            self._adopted.discard(child)

    async def _bury_adopted(self) -> None:
        """Deletes the queues of dead children that are empty by now."""
        for child in list(self._adopted):
            if await self.port.remove(child):
                self._adopted.discard(child)
