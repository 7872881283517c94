"""A node's place in the tree: its parent, its children, and what happens when one of them dies or comes back."""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from broker.errors import NoParent, NotFound
from broker.node import NodePort
from broker.wire import Adopt, Ancestors, Attach, Capacity, Leave, Refused
from topology.dispatch import Child, Dispatcher
from worker.background import Background

MISSED_HEARTBEATS = (
    3  # a child of the last session that stays away for so many beats of this one is looked for
)

log = structlog.get_logger()


class Membership:
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
        self._missing: dict[
            str, int
        ] = {}  # children of the last session that were not heard in this one: beats ago
        self._before = parent  # the parent before the last move
        self._on_way: dict[
            str, tuple[int, int]
        ] = {}  # jobs sent to, received by children that miss some, a beat ago

    # ---- what they say

    def on_capacity(self, told: Capacity) -> None:
        """A child's counters; also how a new child, or one that is back, introduces itself. One without slots is still
        starting: it hears that it is welcome, and does not count yet.
        """
        if not told.slots and not told.accepting:
            self._tell_ancestors(told.node)
            return
        self._missing.pop(told.node, None)
        if told.node in self._adopted:
            self._adopted.discard(told.node)
            self._background.run(self.port.stop_consuming(told.node))
        if self._dispatcher.child(told.node) is None:
            self._tell_ancestors(told.node)
        self._dispatcher.put_child(
            Child(
                told.node,
                slots=told.slots,
                free=told.free,
                received=told.received,
                finished=told.finished,
                accepting=told.accepting,
                incarnation=told.incarnation,
                number=told.number,
                users=told.users,
            )
        )
        self._changed()

    def refuse(self, told: Capacity, model: str) -> None:
        """A node of another model hangs here: it is handed nothing, and is told so."""
        self._dispatcher.remove_child(told.node)
        reason = f"{self._name} serves {model}; this node serves {told.model}: start it with --model {model}"
        self.port.send_control(told.node, Refused(parent=self._name, reason=reason))
        self._changed()

    def on_refused(self) -> None:
        """The parent does not want this node, which serves another model: it goes back to where it came from."""
        if self._before is None or self._before == self.parent:
            return
        log.error(
            "refused by the new parent; going back",
            node=self._name,
            refused_by=self.parent,
            parent=self._before,
        )
        self._home = self._before
        self._background.run(self._move(self._before))

    def on_leave(self, told: Leave) -> None:
        """A child hangs elsewhere now, or has ended in order."""
        self._dispatcher.remove_child(told.node)
        self._missing[told.node] = 0  # should its queue have outlived it
        self._changed()

    def on_ancestors(self, told: Ancestors) -> None:
        """Who is above the parent. If that is this node itself, two moves at the same time have made a ring."""
        self._above = told.names
        if self._name in told.names and self._before not in (None, self.parent):
            log.error(
                "this node hangs below itself; going back", node=self._name, parent=self._before
            )
            self._home = self._before
            self._background.run(self._move(self._before or ""))

    def on_attach(self, told: Attach) -> None:
        """Somebody wants this node below another parent."""
        self._background.run(self._attach(told))

    def on_adopt(self, told: Adopt) -> None:
        """Somebody has seen a dead node whose queue nobody empties, and that this node is the nearest above it."""
        self._background.run(self._adopt_if_dead(told.node))

    def on_gone(self, name: str) -> None:
        """A child died: nothing more is sent to it, and its queue is emptied from here. The parent died: the nearest
        living ancestor takes its place until it is back.
        """
        if name == self.parent:
            self.parent_there = False
            self._background.run(self._find_parent())
        if self._dispatcher.child(name) is not None or name in self._missing:
            self._take_over(name)

    # ---- what they are told

    def report(self, capacity: Capacity) -> None:
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

        self.port.send_control(parent, capacity).add_done_callback(told)

    def hand_children_to_parent(self) -> None:
        """This node leaves in order: its children hang below its parent until it is back."""
        if self.parent is not None:
            for child in self._dispatcher.children:
                self.port.send_control(child.name, Attach(parent=self.parent, for_good=False))

    async def transfer(self) -> None:
        """This node leaves in order: what it has not emptied yet of its dead children's queues is its parent's now."""
        if self.parent is not None:
            for child in self._adopted:
                await self.port.transfer(child, self.parent)

    # ---- what is looked after with every beat

    async def heartbeat(self) -> None:
        """Repeats what heals: the own exchange and queue, who is above the children, the own edge, the way home, the
        queues of dead children.

        A parent that buries the former life of a node which is just back may delete what the new life has declared.
        """
        await self.port.declare()
        for child in self._dispatcher.children:
            self._tell_ancestors(child.name)
        await self._look_for_missing()
        await self._look_for_lost()
        await self._remove_adopted()
        with contextlib.suppress(NoParent):
            await self.go_home()
        if self.parent is not None:
            with contextlib.suppress(NoParent):
                await self.port.attach_to(self.parent)

    async def go_home(self) -> None:
        """Back below the node it belongs below, once that is there again (and not below this one). Raises NoParent."""
        if (
            self._home is None
            or self._home == self.parent
            or self._dispatcher.child(self._home) is not None
        ):
            return
        if await self.port.is_present(self._home):
            await self._move(self._home)

    def forget(self) -> None:
        """The session is over: children introduce themselves again, and those that do not are looked for."""
        self._missing |= dict.fromkeys(self._adopted, 0)
        self._adopted.clear()
        for child in self._dispatcher.children:
            self._missing[child.name] = 0
            self._dispatcher.remove_child(child.name)

    def _tell_ancestors(self, child: str) -> None:
        above = () if self.parent is None else (self.parent, *self._above)
        self.port.send_control(child, Ancestors(names=above))

    async def _attach(self, told: Attach) -> None:
        if (
            self._home is None
            or told.parent == self._name
            or self._dispatcher.child(told.parent) is not None
        ):
            log.warning(
                "refused to hang below a node of the own tree", node=self._name, parent=told.parent
            )
        elif not await self.port.is_present(told.parent):
            log.warning(
                "refused to hang below a node that is not there",
                node=self._name,
                parent=told.parent,
            )
        else:
            if told.for_good:
                self._home = told.parent
            await self._move(told.parent)

    async def _move(self, parent: str) -> None:
        """Hangs this node below another parent; the old edge goes only once the new one stands."""
        await self.port.attach_to(parent)
        old, self.parent, self.parent_there = self.parent, parent, True
        self._before = old
        self._changed()
        if old is not None and old != parent:
            await self.port.detach_from(old)
            await self.port.send_control(old, Leave(node=self._name))

    async def _find_parent(self) -> None:
        """Hangs below the nearest living ancestor. With none alive it stays: the parent may come back."""
        for ancestor in self._above:
            if not await self.port.is_present(ancestor):
                continue
            try:
                await self._move(ancestor)
            except NoParent:  # it has just come, or is about to leave
                continue
            log.warning(
                "the parent is gone; hangs below an ancestor", node=self._name, parent=ancestor
            )
            return

    def _take_over(self, child: str) -> None:
        self._missing.pop(child, None)
        self._dispatcher.remove_child(child)
        self._adopted.add(child)
        self._background.run(self._adopt(child))
        self._changed()

    async def _look_for_missing(self) -> None:
        """Who died while this node itself was away from the broker is in no event."""
        for child in list(self._missing):
            self._missing[child] += 1
            if self._missing[child] >= MISSED_HEARTBEATS:
                del self._missing[child]
                await self._adopt_if_dead(child)

    async def _look_for_lost(self) -> None:
        """Jobs that vanished from a child's queue (purged by hand, say) would count as on their way for ever. Nothing
        has moved for a beat, and the queue is empty: then nothing is on its way.
        """
        before, self._on_way = self._on_way, {}
        for child in self._dispatcher.children:
            counts = (child.sent, child.received)
            if (
                child.in_transit
                and before.get(child.name) == counts
                and await self.port.depth(child.name) == 0
            ):
                known = self._dispatcher.child(child.name)
                if known is not None and (known.sent, known.received) == counts:
                    log.warning(
                        "jobs were lost on their way to a child", node=self._name, child=child.name
                    )
                    self._dispatcher.lost_in_transit(child.name)
                    self._changed()
            elif child.in_transit:
                self._on_way[child.name] = counts

    async def _adopt_if_dead(self, node: str) -> None:
        known = (
            node == self._name or node in self._adopted or self._dispatcher.child(node) is not None
        )
        if not known and not await self.port.is_present(node):
            self._take_over(node)

    async def _adopt(self, child: str) -> None:
        """Takes a dead child's jobs as if they had come to this node. The edge stays as long as the queue does: it
        tells whose the queue is, should this node die too.
        """
        try:
            await self.port.consume(child, prefetch=self._dispatcher.prefetch())
            log.warning("child is gone; took over its queue", node=self._name, child=child)
        except NotFound:  # it removed the queue itself
            self._adopted.discard(child)

    async def _remove_adopted(self) -> None:
        """Deletes the queues of dead children that nobody needs any more."""
        for child in list(self._adopted):
            if await self.port.remove_dead(child):
                self._adopted.discard(child)
