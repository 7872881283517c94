"""A joined node's side of the broker. Its user may read its own queue and inbox, and little else.

What other nodes do to the tree's objects, its parent does for it. It is a leaf: no exchange is its
own. The broker's events are not its to read, so it notices the death of its parent by messages that
come back.
"""

import asyncio
import uuid

from broker.encoding import encode
from broker.errors import AccessRefused, BrokerError, NameTaken, NoParent, NotAdmitted
from broker.job_messages import AnyInboxMessage
from broker.join_messages import ParentAnswer, RegisterNode, RemoveNode
from broker.node import INBOX_PREFETCH, NodeHandler, NodePort
from broker.node_state import NodeState
from broker.session import Session
from topology import names

ANSWER_SECONDS = 3.0  # for the parent to answer


class JoinedPort(NodePort):
    """See the module. `engine`: what the node says of itself when it registers."""

    def __init__(self, session: Session, name: str, handler: NodeHandler, engine: str) -> None:
        super().__init__(session, name, handler)
        self._engine = engine
        self._parent = ""
        self._answers: dict[str, asyncio.Future[ParentAnswer]] = {}  # by number

    async def register(self, parent: str | None, model: str) -> None:
        """Takes the name and has the parent make queue and edge.

        Raises NameTaken, NoParent, or NotAdmitted with the parent's reason.
        """
        if parent is None:
            raise NotAdmitted("a joined node cannot be a root")
        self._model = names.check_amqp_name(model)
        try:
            inbox = await self._take_name()
        except NameTaken as error:
            raise NameTaken(f"{error}; one token is for one node: make another token") from error
        await self._check_present(parent)
        await self.session.bind(inbox, names.CONTROL_EXCHANGE, "")
        await self.session.consume(inbox, self._on_inbox, prefetch=INBOX_PREFETCH)
        await self.attach_to(parent)

    async def declare(self) -> None:
        """The parent does that whenever this node attaches to it."""

    async def attach_to(self, parent: str) -> None:
        """Has the parent add the edge. Raises NoParent, NotAdmitted."""
        number = uuid.uuid4().hex
        request = RegisterNode(
            node=self.name, number=number, model=self._model, engine=self._engine
        )
        answer = await self._ask(parent, request)
        if not answer.done:
            raise NotAdmitted(answer.reason)
        self._parent = parent

    async def detach_from(self, parent: str) -> None:
        """The former parent removes the edge when it hears that this node has left."""

    def publish_state(self, state: NodeState) -> None:
        """With the key that its right is for."""
        key = names.joined_state_key(self.name, self._model)
        self.session.publish(names.EVENTS_EXCHANGE, key, encode(state))

    async def remove(self, node: str) -> bool:
        """Has the parent delete the queue; False if jobs are in it or unsettled here."""
        queue = names.node(node)
        consumer = self._consumers.get(queue)
        await self.stop_consuming(node)
        if not self._unsettled[queue] and await self._removed():
            return True
        if consumer is not None:
            await self.consume(node, prefetch=consumer.prefetch)
        return False

    async def _removed(self) -> bool:
        try:
            request = RemoveNode(node=self.name, number=uuid.uuid4().hex)
            answer = await self._ask(self._parent, request)
        except NoParent:
            return False
        return answer.done

    async def _ask(self, parent: str, request: RegisterNode | RemoveNode) -> ParentAnswer:
        """The parent's answer. Raises NoParent if it does not answer or is not of this tree, and
        NotAdmitted if the token is not for this tree.
        """
        answer: asyncio.Future[ParentAnswer] = asyncio.get_running_loop().create_future()
        self._answers[request.number] = answer
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if not await self.send_control(parent, request):
                    raise NoParent(
                        f"no node named {parent!r} takes nodes that serve {self._model!r}"
                    )
                return await answer
        except TimeoutError as error:
            raise NoParent(f"node {parent!r} does not answer") from error
        except AccessRefused as error:
            raise NotAdmitted(
                f"its token is for the tree of another model than {self._model!r}"
            ) from error
        finally:
            del self._answers[request.number]

    def _on_message(self, message: AnyInboxMessage) -> bool:
        """Takes the answers to this port's own questions."""
        if not isinstance(message, ParentAnswer):
            return False
        answer = self._answers.get(message.number)
        if answer is not None and not answer.done():
            answer.set_result(message)
        return True


def make_port(session: Session, name: str, handler: NodeHandler, engine: str) -> NodePort:
    """The port that the session's rights allow."""
    if session.joined is None:
        return NodePort(session, name, handler)
    if session.joined.name != name:
        raise BrokerError(f"this token is for node {session.joined.name!r}, not {name!r}")
    return JoinedPort(session, name, handler, engine)
