"""A node's place in the tree: its parent and children, and what to do when one dies or returns."""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from broker.errors import NoParent, NotAdmitted, NotFound
from broker.wire import Adopt, Ancestors, Attach, Capacity, Leave, Refused
from topology.children import Child
from topology.dispatch import Dispatcher
from worker.background import Background
from worker.broker_link import BrokerLink

# A child of the last session that is silent for so many heartbeats of this one may be dead.
MISSED_HEARTBEATS = 3

log = structlog.get_logger()


class Membership:
    """Keeps the edges to parent and children. `on_change()` is called when these have changed."""

    def __init__(
        self,
        name: str,
        parent: str | None,
        link: BrokerLink,
        dispatcher: Dispatcher,
        background: Background,
        on_change: Callable[[], None],
    ) -> None:
        self._parent = parent
        self._parent_reachable = parent is not None  # at the last attempt
        self._name = name
        self._home = parent  # the configured parent; `parent` differs while that node is away
        self._previous_parent = parent  # before the last move
        self._above: tuple[str, ...] = ()  # the parent's ancestors, nearest first
        self._link = link
        self._dispatcher = dispatcher
        self._background = background
        self._on_change = on_change
        self._adopted: set[str] = set()  # dead children whose queues this node empties
        # children of the last session, silent in this one -> heartbeats since it began
        self._missing: dict[str, int] = {}
        # children with jobs in transit -> (sent, received) at the last heartbeat
        self._in_transit: dict[str, tuple[int, int]] = {}

    @property
    def parent(self) -> str | None:
        """The node above; None for a root."""
        return self._parent

    @property
    def parent_reachable(self) -> bool:
        """True if the parent was there at the last attempt to reach it."""
        return self._parent_reachable

    def parent_is_gone(self) -> None:
        """The parent's queue did not take a job."""
        self._parent_reachable = False

    # ---- messages and events

    def on_capacity(self, message: Capacity) -> None:
        """A child's counters; a new child, or one that is back, joins by sending them.

        A child without slots is still starting: it is admitted, and does not count yet.
        """
        if not message.slots and not message.accepting:
            self._tell_ancestors(message.node)
            return
        self._missing.pop(message.node, None)
        if message.node in self._adopted:
            self._adopted.discard(message.node)
            self._background.run(self._link.port.stop_consuming(message.node))
        if self._dispatcher.child(message.node) is None:
            self._tell_ancestors(message.node)
        self._dispatcher.put_child(
            Child(
                message.node,
                slots=message.slots,
                free=message.free,
                received=message.received,
                finished=message.finished,
                accepting=message.accepting,
                incarnation=message.incarnation,
                number=message.number,
                users=message.users,
            )
        )
        self._on_change()

    def refuse(self, message: Capacity, reason: str) -> None:
        """A node of another model or engine hangs here: it gets no jobs, and is told so."""
        self._dispatcher.remove_child(message.node)
        self._link.port.send_control(message.node, Refused(parent=self._name, reason=reason))
        self._on_change()

    def on_refused(self) -> None:
        """The new parent serves another model: go back to the previous one."""
        if self._previous_parent is None or self._previous_parent == self._parent:
            return
        log.error(
            "refused by the new parent; going back",
            node=self._name,
            refused_by=self._parent,
            parent=self._previous_parent,
        )
        self._home = self._previous_parent
        self._background.run(self._move(self._previous_parent))

    def on_leave(self, message: Leave) -> None:
        """A child hangs elsewhere now, or has left."""
        self._dispatcher.remove_child(message.node)
        self._missing[message.node] = 0  # its queue may still exist
        self._on_change()

    def on_ancestors(self, message: Ancestors) -> None:
        """Who is above the parent. If this node is, two simultaneous moves have made a ring."""
        self._above = message.names
        if self._name in message.names and self._previous_parent not in (None, self._parent):
            log.error(
                "this node hangs below itself; going back",
                node=self._name,
                parent=self._previous_parent,
            )
            self._home = self._previous_parent
            self._background.run(self._move(self._previous_parent or ""))

    def on_attach(self, message: Attach) -> None:
        """Move below another parent."""
        self._background.run(self._attach(message))

    def on_adopt(self, message: Adopt) -> None:
        """A dead node's queue is not consumed, and this node is the nearest living one above it."""
        self._background.run(self._adopt_if_dead(message.node))

    def on_gone(self, name: str) -> None:
        """Another node's connection has ended.

        A child: nothing more is sent to it, and its queue is emptied from here. The parent: the
        nearest living ancestor takes its place until it is back.
        """
        if name == self._parent:
            self._parent_reachable = False
            self._background.run(self._find_parent())
        if self._dispatcher.child(name) is not None or name in self._missing:
            self._take_over(name)

    # ---- messages to others

    def report(self, capacity: Capacity) -> None:
        """Sends the counters to the parent, which also shows whether it is there."""
        if self._parent is None:
            return
        parent = self._parent

        def confirmed(outcome: asyncio.Future[bool]) -> None:
            if outcome.cancelled() or outcome.exception() is not None or parent != self._parent:
                return
            is_back = outcome.result() and not self._parent_reachable
            is_lost = self._parent_reachable and not outcome.result()
            self._parent_reachable = outcome.result()
            if is_lost and self._link.port.session.joined is not None:
                self._background.run(self._find_parent())  # it hears no event of that death
            if is_back:
                self._on_change()  # a draining node can give its jobs back now

        self._link.port.send_control(parent, capacity).add_done_callback(confirmed)

    def hand_children_to_parent(self, *, for_good: bool = False) -> None:
        """Before leaving: the children hang below the parent, at least until this node is back."""
        if self._parent is not None:
            for child in self._dispatcher.children:
                self._link.port.send_control(
                    child.name, Attach(parent=self._parent, for_good=for_good)
                )

    async def transfer_adopted(self) -> None:
        """Before leaving: the parent takes over the dead children."""
        if self._parent is not None:
            for child in self._adopted:
                await self._link.port.transfer(child, self._parent)

    # ---- repairs, with every heartbeat

    async def heartbeat(self) -> None:
        """Repairs what may have been lost.

        That is the own exchange, queue and edge, the children's knowledge of their ancestors, the
        way home, and the queues of dead children.
        """
        # a parent that removes this node's former incarnation may delete what this one declared
        await self._link.port.declare()
        for child in self._dispatcher.children:
            self._tell_ancestors(child.name)
        await self._look_for_missing()
        await self._look_for_lost()
        await self._remove_adopted()
        with contextlib.suppress(NoParent):
            await self.go_home()
        if self._parent is not None:
            with contextlib.suppress(NoParent):
                await self._link.port.attach_to(self._parent)

    async def go_home(self) -> None:
        """Moves back below the configured parent, once that is there again. Raises NoParent."""
        if (
            self._home is None
            or self._home == self._parent
            or self._dispatcher.child(self._home) is not None
        ):
            return
        if await self._link.port.is_present(self._home):
            await self._move(self._home)

    def forget(self) -> None:
        """The session is over: children join again; those that do not are looked for."""
        self._missing |= dict.fromkeys(self._adopted, 0)
        self._adopted.clear()
        for child in self._dispatcher.children:
            self._missing[child.name] = 0
            self._dispatcher.remove_child(child.name)

    def _tell_ancestors(self, child: str) -> None:
        above = () if self._parent is None else (self._parent, *self._above)
        self._link.port.send_control(child, Ancestors(names=above))

    async def _attach(self, message: Attach) -> None:
        if (
            self._home is None
            or message.parent == self._name
            or self._dispatcher.child(message.parent) is not None
        ):
            log.warning(
                "refused to hang below a node of its own subtree",
                node=self._name,
                parent=message.parent,
            )
        elif not await self._link.port.is_present(message.parent):
            log.warning(
                "refused to hang below a node that is not there",
                node=self._name,
                parent=message.parent,
            )
        else:
            if message.for_good:
                self._home = message.parent
            await self._move(message.parent)

    async def _move(self, parent: str) -> None:
        """Moves this node below another parent. The old edge goes after the new one is made."""
        await self._link.port.attach_to(parent)
        old, self._parent, self._parent_reachable = self._parent, parent, True
        self._previous_parent = old
        self._on_change()
        if old is not None and old != parent:
            await self._link.port.detach_from(old)
            await self._link.port.send_control(old, Leave(node=self._name))

    async def _find_parent(self) -> None:
        """Moves below the nearest living ancestor. With none it stays: the parent may return."""
        for ancestor in self._above:
            if not await self._link.port.is_present(ancestor):
                continue
            try:
                await self._move(ancestor)
            except (NoParent, NotAdmitted):
                continue  # it has no exchange: it has just started, or is about to leave
            log.warning(
                "the parent is gone; hangs below an ancestor", node=self._name, parent=ancestor
            )
            return

    def _take_over(self, child: str) -> None:
        self._missing.pop(child, None)
        self._dispatcher.remove_child(child)
        self._adopted.add(child)
        self._background.run(self._adopt(child))
        self._on_change()

    async def _look_for_missing(self) -> None:
        """No event reports children that died while this node was away from the broker."""
        for child in list(self._missing):
            self._missing[child] += 1
            if self._missing[child] >= MISSED_HEARTBEATS:
                del self._missing[child]
                await self._adopt_if_dead(child)

    async def _look_for_lost(self) -> None:
        """Stops counting jobs that vanished from a child's queue, purged by hand for example.

        If the counts have not moved since the last heartbeat and the queue is empty, no job is in
        transit.
        """
        before, self._in_transit = self._in_transit, {}
        for child in self._dispatcher.children:
            if not child.in_transit:
                continue
            counts = (child.sent, child.received)
            unchanged = before.get(child.name) == counts
            if not unchanged or await self._link.port.depth(child.name) != 0:
                self._in_transit[child.name] = counts
                continue
            current = self._dispatcher.child(child.name)
            if current is not None and (current.sent, current.received) == counts:
                log.warning(
                    "jobs were lost on their way to a child", node=self._name, child=child.name
                )
                self._dispatcher.lost_in_transit(child.name)
                self._on_change()

    async def _adopt_if_dead(self, node: str) -> None:
        is_child = node in self._adopted or self._dispatcher.child(node) is not None
        if node == self._name or is_child:
            return
        if not await self._link.port.is_present(node):
            self._take_over(node)

    async def _adopt(self, child: str) -> None:
        """Takes a dead child's jobs as if they had arrived here.

        The edge stays as long as the queue does: should this node die, too, it says who is above.
        """
        try:
            await self._link.port.consume(child, prefetch=self._dispatcher.prefetch())
            log.warning("child is gone; took over its queue", node=self._name, child=child)
        except NotFound:  # it left, and deleted the queue itself
            self._adopted.discard(child)

    async def _remove_adopted(self) -> None:
        """Deletes the queues of dead children that are no longer needed."""
        for child in list(self._adopted):
            if await self._link.port.remove_dead(child):
                self._adopted.discard(child)
