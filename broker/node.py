"""A node's side of the broker: its registration, queue, inbox and edges. It decides nothing."""

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog

from broker.dead_letter_headers import dead_letter_headers
from broker.encoding import decode, encode
from broker.errors import DecodeError, NameTaken, NoParent, NotFound, QueueLocked, Unsendable
from broker.faults import fault_point
from broker.gone import remove_gone
from broker.job_messages import Answer, AnyInboxMessage, JobReport
from broker.malformed import address_of, sender_of
from broker.node_state import NodeState
from broker.outbox import Outbox
from broker.session import BROKER_EVENTS, Delivery, Session, vouched_node
from broker.shared_objects import declare_shared, hear_joined
from broker.wire import NO_RUN, Adopt, Failed, Job
from topology import names

INBOX_PREFETCH = 200

log = structlog.get_logger()


class NodeHandler(Protocol):
    """What arrives for a node. Called on the event loop; must not block."""

    def on_job(self, job: Job, delivery: Delivery) -> None: ...

    def on_control(self, message: AnyInboxMessage) -> None: ...

    def on_joined_message(self, sender: str, message: AnyInboxMessage) -> None:
        """A control message of a joined node, which may not send everything."""

    def on_returned_job(self, sender: str, job: Job, delivery: Delivery) -> None:
        """A joined node gives back a job, which it may have altered."""

    def on_ignored(self, sender: str, reason: str) -> None:
        """A control message did not decode. `sender`: the node that it names, or empty."""

    def on_node_gone(self, name: str) -> None:
        """That node's connection has ended."""

    def on_reader_gone(self, queue: str) -> None:
        """Nobody reads that reply queue any more."""


@dataclass(frozen=True, slots=True)
class _Consumer:
    tag: str
    prefetch: int


class NodePort:
    """One registered node on one session."""

    def __init__(self, session: Session, name: str, handler: NodeHandler) -> None:
        self.session = session
        self.name = name
        self._own = names.node(name)  # its queue, and the exchange of its edges
        self.outbox = Outbox(session, handler.on_reader_gone)
        self._handler = handler
        self._model = ""
        self._consumers: dict[str, _Consumer] = {}  # by queue
        self._unsettled: Counter[str] = Counter()  # deliveries, by queue
        self._after_adoption = fault_point("adopted")

    async def register(self, parent: str | None, model: str) -> None:
        """Takes the name, declares exchange and queue, and binds the queue below `parent`.

        A root's queue is bound to the exchange where jobs enter. Raises NameTaken, NoParent or
        BadName (a model's name is a routing key) and leaves nothing of this node behind.
        """
        self._model = names.check_amqp_name(model)
        await declare_shared(self.session)
        inbox = await self._take_name()
        if parent is not None:
            await self._check_present(parent)
        await self.declare()
        await self.session.bind(inbox, names.CONTROL_EXCHANGE, "")
        await self._follow_broker_events(inbox)
        await self._hear_joined(inbox)
        if parent is None:
            await self.session.bind(names.node(self.name), names.JOBS_EXCHANGE, model)
        else:
            await self.attach_to(parent)
        await self.session.consume(inbox, self._on_inbox, prefetch=INBOX_PREFETCH)

    async def _take_name(self) -> str:
        """Declares the inbox and returns its name. Raises NameTaken."""
        inbox = names.inbox(self.name)
        try:
            await self.session.declare_queue(inbox, exclusive=True)
        except QueueLocked as error:
            raise NameTaken(f"node already registered: {self.name}") from error
        return inbox

    async def _check_present(self, parent: str) -> None:
        """Raises NoParent."""
        if not await self.is_present(parent):
            raise NoParent(f"no node named {parent!r} is registered to hang {self.name!r} below")

    async def _hear_joined(self, inbox: str) -> None:
        """Lets joined nodes of this tree reach the inbox, and the dead letters."""
        await hear_joined(self.session, inbox, names.joined_key(inbox, self._model))
        await hear_joined(self.session, names.DEAD_QUEUE, names.DEAD_QUEUE)

    async def declare(self) -> None:
        """Declares the node's own exchange and queue, unless they exist."""
        await self.session.declare_exchange(self._own, "direct")
        await self.session.declare_queue(self._own)

    async def add_joined(self, child: str) -> None:
        """Declares a joined child's queue, the edge to it and the way back: it may do none of it
        itself.
        """
        queue = names.node(child)
        await hear_joined(self.session, self._own, names.joined_key(self._own, self._model))
        await self.session.declare_queue(queue)
        await self.session.bind(queue, self._own, child)

    async def drop_joined(self, child: str) -> None:
        """Removes the edge to a joined child that hangs elsewhere now."""
        with contextlib.suppress(NotFound):
            await self.session.unbind(names.node(child), self._own, child)

    async def attach_to(self, parent: str) -> None:
        """Adds the edge from `parent`. Raises NoParent."""
        try:
            await self.session.bind(names.node(self.name), names.node(parent), self.name)
        except NotFound as error:
            raise NoParent(
                f"node {parent!r} takes no nodes below it: it has a token, or has just started"
            ) from error

    async def transfer(self, child: str, parent: str) -> None:
        """Hands a dead child to `parent`, which gets the edge to it and takes its jobs."""
        await self.stop_consuming(child)
        with contextlib.suppress(NotFound):  # its queue is gone already
            await self.session.bind(names.node(child), names.node(parent), child)
            await self.session.unbind(names.node(child), names.node(self.name), child)
        await self.send_control(parent, Adopt(node=child))

    async def detach_from(self, parent: str) -> None:
        """Removes the edge from `parent`: jobs that it still forwards are returned to it."""
        try:
            await self.session.unbind(names.node(self.name), names.node(parent), self.name)
        except NotFound:
            return  # the exchange or the queue is gone, and the edge with it

    async def is_present(self, node: str) -> bool:
        """True if a node of that name is registered and connected."""
        return await self.session.exists(names.inbox(node))

    async def depth(self, node: str) -> int | None:
        """Jobs ready in that node's queue; None if there is none."""
        return await self.session.depth(names.node(node))

    async def consume(self, node: str, *, prefetch: int) -> None:
        """Consumes that node's queue: the node's own, or a dead child's."""
        queue = names.node(node)
        if queue not in self._consumers:
            handler = functools.partial(self._on_delivery, queue)
            tag = await self.session.consume(queue, handler, prefetch=prefetch)
            self._consumers[queue] = _Consumer(tag, prefetch)

    async def stop_consuming(self, node: str) -> None:
        """Ends the consumer of that node's queue, if there is one."""
        consumer = self._consumers.pop(names.node(node), None)
        if consumer is not None:
            await self.session.cancel(consumer.tag)

    async def remove(self, node: str) -> bool:
        """Deletes that node's queue and exchange.

        False if jobs wait in the queue, or are unsettled here and would be lost if this node died:
        then the queue is consumed again. Where queues cannot be deleted safely it stays, empty.
        """
        queue = names.node(node)
        if not self.session.deletes:
            return not self._unsettled[queue] and not await self.session.depth(queue)
        consumer = self._consumers.get(queue)
        # the broker would report the deletion to our own consumer as a loss
        await self.stop_consuming(node)
        if self._unsettled[queue] or not await self.session.delete_queue(queue):
            if consumer is not None:
                await self.consume(node, prefetch=consumer.prefetch)
            return False
        await self.session.delete_exchange(queue)
        return True

    async def remove_gone(self, nodes: Iterable[str]) -> None:
        """Deletes what a tree that has ended left. Raises Refusal, Unavailable."""
        await remove_gone(self.session, nodes)

    async def remove_dead(self, child: str) -> bool:
        """Deletes what a dead child left.

        False while that is needed: by jobs, or by edges to dead nodes below it, which say who is to
        empty their queues.
        """
        queue = names.node(child)
        if not self.session.deletes or self._unsettled[queue]:
            return False
        if not await self.session.delete_exchange(queue, if_unused=True):
            return False
        return await self.remove(child)

    def forward(self, child: str, job: Job) -> asyncio.Future[bool]:
        """Sends the job to a child; False if the edge to it is gone."""
        return self.session.publish(self._own, child, encode(job), persistent=True)

    def return_to_parent(self, parent: str, job: Job) -> asyncio.Future[bool]:
        """Puts the job into the parent's queue; False if that is gone."""
        return self.session.publish("", names.node(parent), encode(job), persistent=True)

    def send_control(self, node: str, message: AnyInboxMessage) -> asyncio.Future[bool]:
        """Puts a control message into that node's inbox; False if the node is gone."""
        return self.session.publish("", names.inbox(node), encode(message))

    def publish_state(self, state: NodeState) -> None:
        """Publishes the state for dashboards."""
        self.session.publish(names.EVENTS_EXCHANGE, names.state_key(self.name), encode(state))

    def publish_jobs(self, report: JobReport) -> None:
        """Publishes the jobs for operators who watch."""
        self.session.publish(names.EVENTS_EXCHANGE, names.jobs_key(self.name), encode(report))

    def answer(self, queue: str, answer: Answer) -> None:
        """Answers an operator's question, if that is a queue for answers."""
        if names.is_watch_queue(queue):
            self.session.publish("", queue, encode(answer))

    async def _follow_broker_events(self, inbox: str) -> None:
        try:
            await self.session.bind(inbox, BROKER_EVENTS, "queue.deleted")
        except NotFound:
            log.warning(
                "the broker lacks rabbitmq_event_exchange: dead nodes are noticed late",
                node=self.name,
            )

    def _on_delivery(self, queue: str, delivery: Delivery) -> None:
        self._track(queue, delivery)
        try:
            job = decode(delivery.body, Job)
        except DecodeError as error:
            self.reject(delivery, str(error))
            return
        if not names.is_reply_queue(job.reply_to):  # frames must reach no other queue
            self.reject(delivery, f"{job.reply_to!r} is no reply queue")
            return
        if delivery.exchange == names.JOINED_EXCHANGE:
            self._on_returned_job(queue, job, delivery)
        else:
            self._handler.on_job(job, delivery)
        if queue != self._own:
            self._after_adoption.reached()

    def _on_returned_job(self, queue: str, job: Job, delivery: Delivery) -> None:
        """Such a job is not run before its reader, who knows its token, has granted it."""
        sender = vouched_node(delivery)
        of_tree = delivery.routing_key == names.joined_key(queue, self._model)
        if not sender or not of_tree or not job.reply_token:
            self.reject(delivery, f"not from a joined node that was given it: {delivery.sender!r}")
            return
        job = msgspec.structs.replace(job, restarted=True)
        self._handler.on_returned_job(sender, job, delivery)

    def _track(self, queue: str, delivery: Delivery) -> None:
        """Counts the delivery as unsettled until it is settled."""
        settle = delivery.settle

        def settle_and_count(done: bool) -> None:
            self._unsettled[queue] -= 1
            settle(done)

        self._unsettled[queue] += 1
        delivery.settle = settle_and_count

    def _on_inbox(self, delivery: Delivery) -> None:
        delivery.ack()
        if delivery.exchange == BROKER_EVENTS:
            self._on_queue_deleted(str(delivery.headers.get("name", "")))
            return
        sender = ""
        if delivery.exchange == names.JOINED_EXCHANGE:
            sender = vouched_node(delivery)
            if not sender:
                self._handler.on_ignored("", "the broker does not know its sender")
                return
        try:
            message = decode(delivery.body, AnyInboxMessage)
        except DecodeError as error:
            self._handler.on_ignored(sender or sender_of(delivery.body), str(error))
            return
        if sender:
            self._handler.on_joined_message(sender, message)
        elif not self._on_message(message):
            self._handler.on_control(message)

    def _on_message(self, message: AnyInboxMessage) -> bool:
        """True for a message that the port takes itself."""
        return False

    def _on_queue_deleted(self, queue: str) -> None:
        owner = names.inbox_owner(queue)
        if queue.startswith(names.REPLY_PREFIX):
            self._handler.on_reader_gone(queue)
        elif owner is not None and owner != self.name:
            self._handler.on_node_gone(owner)

    def dead_letter(self, job: Job, reason: str, faults: tuple[str, ...]) -> asyncio.Future[bool]:
        """Puts a job that is given up on into the dead letter queue."""
        return self._publish_dead(encode(job), dead_letter_headers(reason, self.name, job, faults))

    def reject(self, delivery: Delivery, reason: str, token: str = "") -> None:
        """Dead-letters a message that is no job, tells its reader if it names one, and acks it.

        What a joined node sent may name a reader of another job, who is told only with the job's
        `token`, and believes nothing with a wrong one.
        """
        address = None
        if token or delivery.exchange != names.JOINED_EXCHANGE:
            address = address_of(delivery.body)
        request_id = address.request_id if address else None
        log.warning(
            "undecodable job dead-lettered", node=self.name, request_id=request_id, reason=reason
        )
        headers = dead_letter_headers(f"undecodable: {reason}", self.name)

        def confirmed(outcome: asyncio.Future[bool]) -> None:
            if is_lost(outcome):
                return
            if address is not None and names.is_reply_queue(address.reply_to):
                refusal = _refusal(address.request_id, reason)
                self.outbox.put(address.reply_to, refusal, token=token)
            delivery.ack()

        self._publish_dead(delivery.body, headers).add_done_callback(confirmed)

    def _publish_dead(self, body: bytes, headers: Mapping[str, object]) -> asyncio.Future[bool]:
        return self.session.publish("", names.DEAD_QUEUE, body, persistent=True, headers=headers)


def _refusal(request_id: str, reason: str) -> Failed:
    message = f"the node cannot read this job: {reason}"
    return Failed(request_id=request_id, seq=NO_RUN, code="invalid", message=message)


def is_lost(outcome: asyncio.Future[bool]) -> bool:
    """True if a publish failed with its session: unacknowledged messages are delivered again."""
    return outcome.cancelled() or not isinstance(outcome.exception(), Unsendable | None)
