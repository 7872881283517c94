"""A parent's part for joined nodes below it: it admits them, and keeps what may not be theirs."""

from collections import Counter

import msgspec
import structlog

from broker.errors import BrokerError
from broker.join_messages import ParentAnswer, RegisterNode, RemoveNode
from broker.wire import Capacity, Leave
from topology.limits import MAX_JOINED_SLOTS
from worker.broker_link import BrokerLink

MAX_JOINED = 10_000  # admitted at once
MAX_UNDER_WAY = 4  # requests of one node

log = structlog.get_logger()


def family(engine: str) -> str:
    """Engines of one family give the same kind of answers; "" where it is not known."""
    if engine in ("", "none"):
        return ""
    return "echo" if engine == "echo" else "model"


def believable(message: Capacity) -> Capacity:
    """A joined node's counters with no more slots than it may have: who claims many gets most
    jobs of its model. What is taken stays taken.
    """
    excess = message.slots - MAX_JOINED_SLOTS
    if excess <= 0:
        return message
    free = max(0, message.free - excess)
    return msgspec.structs.replace(message, slots=MAX_JOINED_SLOTS, free=free)


class Registrar:
    """Admits joined nodes to the tree of one model and one family of engines.

    `engine`: that of the tree; empty if it may be any.
    """

    def __init__(self, name: str, model: str, engine: str, link: BrokerLink) -> None:
        self._name = name
        self._model = model
        self._engine = engine
        self._link = link
        # nodes that hang here; a new session begins without, and they register again soon
        self.admitted: set[str] = set()
        self._under_way: Counter[str] = Counter()  # requests by node

    def mismatch(self, message: Capacity | RegisterNode) -> str:
        """Why that node cannot serve this tree; empty if it can. Former releases say less."""
        if message.model not in ("", self._model):
            return (
                f"{self._name} serves {self._model}; this node serves {message.model}: "
                f"start it with --model {self._model}"
            )
        own, other = family(self._engine), family(message.engine)
        if own and other and own != other:
            return (
                f"{self._name} is in a tree of engine {self._engine}; this node has "
                f"{message.engine}: start it with --engine {self._engine}"
            )
        return ""

    def shown_mismatch(self, message: Capacity) -> str:
        """The same for this node's own operator."""
        if message.model not in ("", self._model):
            return f"refused: it serves {message.model}, and this tree {self._model}"
        return f"refused: its engine is {message.engine}, and this tree's {self._engine}"

    async def on_request(self, sender: str, message: RegisterNode | RemoveNode | Leave) -> None:
        """Does what the node asks. Of a flood the rest is dropped: nodes repeat themselves."""
        if self._under_way[sender] >= MAX_UNDER_WAY:
            return
        self._under_way[sender] += 1
        try:
            match message:
                case RegisterNode():
                    await self._register(sender, message)
                case RemoveNode():
                    await self._remove(sender, message)
                case Leave():
                    await self._left(sender)
        finally:
            self._under_way -= Counter([sender])

    async def _register(self, sender: str, message: RegisterNode) -> None:
        """Makes the node's queue and edge, and answers."""
        reason = self._refusal(sender, message)
        if not reason:
            await self._link.port.add_joined(sender)
            self.admitted.add(sender)
        else:
            log.warning("a joined node was refused", node=self._name, child=sender, reason=reason)
        self._answer(sender, message.number, done=not reason, reason=reason)

    def _refusal(self, sender: str, message: RegisterNode) -> str:
        if message.node != sender or sender == self._name:
            return f"this token is for node {sender!r}, not {message.node!r}"
        if sender not in self.admitted and len(self.admitted) >= MAX_JOINED:
            return f"{self._name} has {MAX_JOINED} joined nodes already"
        return self.mismatch(message)

    async def _remove(self, sender: str, message: RemoveNode) -> None:
        """Deletes the queue of a node that leaves, if it is empty, and answers."""
        try:
            done = sender in self.admitted and await self._link.port.remove(sender)
        except BrokerError as error:
            log.warning("queue not deleted", node=self._name, child=sender, reason=str(error))
            done = False
        self._answer(sender, message.number, done=done)

    async def _left(self, sender: str) -> None:
        """The node hangs elsewhere now, or has ended."""
        self.admitted.discard(sender)
        await self._link.port.drop_joined(sender)

    def _answer(self, sender: str, number: str, *, done: bool, reason: str = "") -> None:
        answer = ParentAnswer(number=number, done=done, reason=reason)
        self._link.port.send_control(sender, answer)
