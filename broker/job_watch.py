"""An operator's process asks all nodes about their jobs, or follows them while somebody watches."""

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import msgspec
import structlog

from broker.encoding import decode, encode
from broker.errors import BrokerError, DecodeError, Unavailable
from broker.job_messages import (
    MAX_LISTED,
    REPORT_SECONDS,
    Answer,
    AnyQuestion,
    JobReport,
    ReportJobs,
)
from broker.session import Delivery, Session, vouched_node
from broker.shared_objects import hear_joined
from topology import names

ANSWER_SECONDS = 2.0  # nodes that have not answered until then are left out
SILENT_SECONDS = 2 * REPORT_SECONDS  # a report that was not renewed for so long is dropped
MAX_QUESTIONS = 64  # open at once
PREFETCH = 1000

Q = TypeVar("Q", bound=AnyQuestion)
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ArrivedReport:
    """A node's latest report, and when it came (monotonic clock)."""

    report: JobReport
    arrived: float


@dataclass(slots=True)
class _OpenQuestion:
    """`waiting_for`: nodes without an answer; `any_known`: one that knows the job is enough."""

    waiting_for: set[str]
    any_known: bool
    answers: list[Answer] = field(default_factory=list)
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, answer: Answer) -> None:
        if answer.node not in self.waiting_for:
            return  # it has answered already, or is no node
        self.waiting_for.discard(answer.node)
        self.answers.append(answer)
        if not self.waiting_for or (self.any_known and answer.known):
            self.complete.set()


class KnownNodes(Protocol):
    """The registered nodes: those whose answers are awaited and believed."""

    def names(self) -> set[str]: ...

    def knows(self, name: str) -> bool: ...


class JobWatch:
    """See the module."""

    def __init__(self, process: str, nodes: KnownNodes) -> None:
        self._queue = names.answers(process)
        self._nodes = nodes
        self._session: Session | None = None
        self._watching = False
        self._reports: dict[str, ArrivedReport] = {}
        self._listeners: list[Callable[[], None]] = []
        self._questions: dict[str, _OpenQuestion] = {}

    async def open(self, session: Session) -> None:
        """Listens on a new session. Raises BrokerError."""
        await session.declare_queue(self._queue, exclusive=True)
        await hear_joined(session, self._queue, self._queue)
        await session.consume(self._queue, self._on_message, prefetch=PREFETCH)
        self._session = session
        if self._watching:
            await self._bind(session)
            self.renew()

    def close(self) -> None:
        """The session is lost: what nodes say now is not heard."""
        self._session = None
        self._forget_reports()

    # ---- questions

    async def ask(self, question: Q, *, any_known: bool = False) -> list[Answer]:
        """Asks every node; returns the answers that came in ANSWER_SECONDS.

        The question's `number` and `reply_to` are filled in. `any_known`: returns as soon as a node
        knows the job. Raises Unavailable.
        """
        if self._session is None:
            raise Unavailable("the broker is not connected")
        if len(self._questions) >= MAX_QUESTIONS:
            raise Unavailable("too many questions are open")
        number = uuid.uuid4().hex
        question = msgspec.structs.replace(question, number=number, reply_to=self._queue)
        open_question = self._questions[number] = _OpenQuestion(self._nodes.names(), any_known)
        try:
            self._session.publish(names.CONTROL_EXCHANGE, "", encode(question))
            if open_question.waiting_for:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await open_question.complete.wait()
        except TimeoutError:
            pass  # from nodes of the former release, or stuck ones: left out
        finally:
            del self._questions[number]
        return open_question.answers

    # ---- reports

    async def watch(self) -> None:
        """Has nodes publish their jobs from now on; `renew` keeps that up.

        Raises BrokerError if the session is being lost: the next one begins with this.
        """
        self._watching = True
        if self._session is not None:
            await self._bind(self._session)
            self.renew()

    async def unwatch(self) -> None:
        """Nobody watches any more. Nodes stop by themselves soon."""
        self._watching = False
        self._forget_reports()
        if self._session is None:
            return
        try:
            await self._session.unbind(self._queue, names.EVENTS_EXCHANGE, names.jobs_key("*"))
        except BrokerError as error:
            log.info("job reports not unbound", reason=str(error))

    def renew(self) -> None:
        """Has nodes publish their jobs for REPORT_SECONDS more, and all of them now."""
        if self._session is not None:
            message = ReportJobs(seconds=REPORT_SECONDS, limit=MAX_LISTED)
            self._session.publish(names.CONTROL_EXCHANGE, "", encode(message))

    def reports(self) -> list[ArrivedReport]:
        """The latest report of each registered node that goes on reporting."""
        oldest = time.monotonic() - SILENT_SECONDS
        for node, latest in list(self._reports.items()):
            if latest.arrived < oldest or not self._nodes.knows(node):
                del self._reports[node]
        return list(self._reports.values())

    def complete(self) -> bool:
        """True if every registered node has reported."""
        return self._nodes.names() <= self._reports.keys()

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls `listener` when `reports` has changed."""
        self._listeners.append(listener)

    # ---- what arrives

    async def _bind(self, session: Session) -> None:
        await session.bind(self._queue, names.EVENTS_EXCHANGE, names.jobs_key("*"))

    def _on_message(self, delivery: Delivery) -> None:
        delivery.ack()
        try:
            if delivery.exchange == names.EVENTS_EXCHANGE:
                report = decode(delivery.body, JobReport)
                if delivery.routing_key == names.jobs_key(report.node):
                    self._on_report(report)
            else:
                answer = decode(delivery.body, Answer)
                if delivery.exchange == "" or vouched_node(delivery) == answer.node:
                    self._on_answer(answer)
        except DecodeError as error:
            log.warning("undecodable message about jobs dropped", reason=str(error))

    def _on_report(self, report: JobReport) -> None:
        if self._watching and self._nodes.knows(report.node):
            self._reports[report.node] = ArrivedReport(report, time.monotonic())
            self._notify()

    def _on_answer(self, answer: Answer) -> None:
        question = self._questions.get(answer.number)
        if question is not None:
            question.add(answer)

    def _forget_reports(self) -> None:
        self._reports.clear()
        self._notify()

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()
