"""The jobs at one node: each is placed, run, handed on or ended, and its delivery settled once.

A delivery is acknowledged when its job was handed on (confirmed) or ended (final frame confirmed).
So a job whose node dies is delivered again, and is `restarted` from then on: the node that gets to
run it first requests to resume.
"""

import asyncio
import itertools
from collections.abc import Callable, Container, Iterable

import msgspec
import structlog

from broker import tracing
from broker.faults import fault_point
from broker.node import is_lost
from broker.session import Delivery
from broker.tracing import NO_SPAN, NO_TRACER, Span, Tracer
from broker.wire import (
    AnyFrame,
    Cancel,
    Failed,
    Interrupted,
    Job,
    Supersede,
)
from topology import names
from topology.cap import Cap
from topology.dispatch import Dispatcher, Forward, Hold
from worker import job_spans
from worker.broker_link import BrokerLink
from worker.engines.base import Engine
from worker.given_jobs import GivenJobs
from worker.job_spans import JobSpans
from worker.membership import Membership
from worker.pending_job import PendingJob
from worker.reply_channel import BrokerReplyChannel, ResumeRequests
from worker.run import Ending, JobRun
from worker.running_jobs import Running, RunningJobs
from worker.rw_lock import ReadersWriterLock
from worker.settlement import Settlement
from worker.unwanted import ENDED_BY_OPERATOR, Unwanted
from worker.waiting import WaitingJobs

RETURN_SECONDS = 2.0  # jobs not placed for so long go back to the parent, if the policy says so

log = structlog.get_logger()


class Jobs:
    """See the module.

    `on_change()` is called when a counter has changed, `on_engine_failure(reason)` when a run ended
    by the engine's fault. `joined`: the children that may not be trusted with a job's accounting.
    """

    def __init__(
        self,
        name: str,
        model: str,
        incarnation: str,
        engine: Engine | None,
        link: BrokerLink,
        dispatcher: Dispatcher,
        membership: Membership,
        cap: Cap,
        on_change: Callable[[], None],
        on_engine_failure: Callable[[str], None],
        tracer: Tracer = NO_TRACER,
        joined: Container[str] = (),
    ) -> None:
        self.tokens = 0  # of runs that have ended
        self.failed = 0  # runs that failed, not by the client's fault
        self.run_lock = ReadersWriterLock(self._starts_changed)
        self.resume_requests = ResumeRequests(name, incarnation, link)
        self.waiting = WaitingJobs(name, dispatcher, cap, self._send_frame)
        self.running = RunningJobs()
        self.unwanted = Unwanted()
        self.settlement = Settlement(name, link)
        self.given = GivenJobs()
        # bound once: the proxy `log` would make a logger for each line, written or not
        self._log = log.bind(node=name)
        self._joined = joined
        self._name = name
        self._model = model
        self._incarnation = incarnation
        self._engine = engine
        self._link = link
        self._dispatcher = dispatcher
        self._membership = membership
        self._on_change = on_change
        self._on_engine_failure = on_engine_failure
        self._spans = JobSpans(name, tracer)
        self._engine_ready = True
        self._run_numbers = itertools.count(1)
        self._handing_on: set[int] = set()  # ids of pending jobs, not confirmed elsewhere yet
        self._after_forward = fault_point("forward-confirmed")

    @property
    def busy(self) -> bool:
        """True while a job is here."""
        return bool(len(self.waiting) or len(self.running) or self._handing_on)

    @property
    def handing_on(self) -> bool:
        """True while a job is on its way elsewhere, not confirmed."""
        return bool(self._handing_on)

    def users(self) -> dict[str, int]:
        """Jobs by user, waiting or running, here or below."""
        return self._dispatcher.users_below() + self.running.users + self.waiting.users

    # ---- arrival and placement

    def add(self, job: Job, delivery: Delivery) -> None:
        """A job was delivered."""
        if delivery.redelivered:
            job = msgspec.structs.replace(job, restarted=True)
        self._dispatcher.job_received()
        if job.model != self._model:
            self._refuse(PendingJob(job, delivery))
            return
        pending = PendingJob.of(job, delivery)
        if self._spans.enabled:
            self._spans.arrived(pending)
        self._log.debug("job arrived", request_id=job.request_id)
        self.waiting.add(pending, first=self._has_begun(job))
        self.pump()
        if job.most_waiting is not None:
            self._keep_to_plan(pending)

    def _keep_to_plan(self, pending: PendingJob) -> None:
        """Ends a new job that waits although its user's plan lets no more of them wait."""
        excess = self.waiting.beyond_plan(pending)
        if excess is not None:
            self.waiting.remove(pending)
            self.settlement.end(pending, pending.failed("user_limit", excess))

    def _refuse(self, pending: PendingJob) -> None:
        """A job of another model came here by mistake: better no answer than a wrong model's."""
        if self._spans.enabled:
            self._spans.arrived(pending)
        self._dispatcher.job_rejected()
        message = f"{self._name} serves {self._model}, not {pending.job.model}"
        final = pending.failed("no_node", message)
        self.settlement.dead_letter(pending, (), msgspec.structs.replace(final, retryable=True))

    def _has_begun(self, job: Job) -> bool:
        """True if the job was already dispatched once.

        A restarted root gets its whole queue again: those jobs, without a trail, have not begun.
        """
        return bool(job.trail) and (job.restarted or self._engine is None)

    def pump(self) -> None:
        """Places waiting jobs, in order, until one must wait."""
        while len(self.waiting):
            if not self._dispatcher.accepting and self._membership.parent_reachable:
                self._return_to_parent(list(self.waiting))
                return
            decision = self._dispatcher.decide()
            if isinstance(decision, Hold):
                self.waiting.hold(decision.reason, decision.code)
                return
            pending = self.waiting.take()
            if pending is None:
                self.waiting.hold("", "busy")
                return
            if not self._settle_unwanted(pending):
                self.waiting.departed(pending)
                if isinstance(decision, Forward):
                    self._forward(pending, decision.child)
                else:
                    self._run(pending)

    def _return_to_parent(self, jobs: Iterable[PendingJob]) -> None:
        """Gives these waiting jobs back to the parent, except those that nobody wants."""
        for pending in jobs:
            self.waiting.remove(pending)
            if not self._settle_unwanted(pending):
                self._give_back(pending)

    def _settle_unwanted(self, pending: PendingJob) -> bool:
        """Ends or drops a job whose answer nobody wants any more. True if it did."""
        verdict = self.unwanted.verdict(pending)
        if verdict is None:
            return False
        if verdict.final is None:
            self.settlement.settle(pending)
        else:
            self.settlement.end(pending, verdict.final)
        return True

    # ---- running

    def _run(self, pending: PendingJob) -> None:
        if self._engine is None:
            raise RuntimeError("a root has no slots, so the dispatcher never decides Run")
        self._dispatcher.run_started()
        number = next(self._run_numbers)
        self._log.debug("job runs", request_id=pending.job.request_id)
        job = pending.whole_job()
        channel = BrokerReplyChannel(self.resume_requests, job, self._link)
        run = JobRun(
            self._engine,
            job,
            self._name,
            self._incarnation,
            number,
            channel,
            self.run_lock,
            pending.expires,
            pending.way_to(self._name),
        )
        task = asyncio.create_task(
            self._run_to_end(pending, run), name=f"run {pending.job.request_id}"
        )
        self.running.add(Running(pending, run, task))

    async def _run_to_end(self, pending: PendingJob, run: JobRun) -> None:
        ending: Ending | None = None
        span = NO_SPAN
        if self._spans.enabled:
            span = self._spans.running(pending, run.job)
            tracing.current.set(span.traceparent)  # of this task alone
        try:
            ending = await run.run()
            self._after(pending, run, ending)
        finally:
            if span is not NO_SPAN:
                job_spans.end_run(span, run, ending)
            self._log.debug("run ended", request_id=run.job.request_id)
            self._dispatcher.run_ended()
            self.running.remove(run)
            self.tokens += run.tokens
            self.pump()
            self._on_change()

    def _after(self, pending: PendingJob, run: JobRun, ending: Ending) -> None:
        """Decides what becomes of a job whose run has ended."""
        fault = run.fault_of_node(ending)
        if fault is not None:
            self.failed += 1
            self._log.warning("run failed", request_id=run.job.request_id, reason=fault)
        if isinstance(ending, Interrupted):
            self._interrupted(pending, run, ending)
        elif isinstance(ending, Failed) and ending.code == "given_up":
            self.settlement.dead_letter(pending, run.faults, ending)
        else:
            self.settlement.end(pending, ending)

    def _interrupted(self, pending: PendingJob, run: JobRun, ending: Interrupted) -> None:
        """The job goes on elsewhere, after its reader knows: the loss must count first."""
        pending.job = msgspec.structs.replace(pending.job, restarted=True)

        def sent(_read: bool) -> None:
            self._handing_on.discard(id(pending))
            if self._membership.parent_reachable:
                self._give_back(pending)
            else:
                self.waiting.put_back(pending)
                self.pump()

        self._handing_on.add(id(pending))
        if run.begun:
            job = pending.job
            self._link.port.outbox.put(job.reply_to, ending, sent=sent, token=job.reply_token)
        else:
            sent(True)
        if not run.stopped and not run.isolated:
            self._on_engine_failure(ending.reason)

    # ---- handing on

    def _forward(self, pending: PendingJob, child: str) -> None:
        self._dispatcher.forwarded(child, pending.job.user)

        def gone() -> None:
            request_id = pending.job.request_id
            self._log.info("a child's edge is gone", child=child, request_id=request_id)
            self._dispatcher.remove_child(child)
            self.waiting.put_back(pending)

        self._log.debug("job forwarded", child=child, request_id=pending.job.request_id)
        job, span = pending.job_from(self._name), NO_SPAN
        if self._spans.enabled:
            job, span = self._spans.sending(pending, job, names.node(child))
        if child in self._joined:
            job = self.given.give(child, job)
        outcome = self._link.port.forward(child, job)
        self._settle_when_confirmed(outcome, pending, gone, span)

    def _give_back(self, pending: PendingJob) -> None:
        """Sends the job to the parent's queue: this node drains, leaves or fails."""

        def gone() -> None:
            self._membership.parent_is_gone()
            self.waiting.put_back(pending)

        parent = self._membership.parent or ""
        job, span = pending.job_for_parent(), NO_SPAN
        if self._spans.enabled:
            job, span = self._spans.sending(pending, job, names.node(parent))
        outcome = self._link.port.return_to_parent(parent, job)
        self._settle_when_confirmed(outcome, pending, gone, span)

    def _settle_when_confirmed(
        self,
        outcome: asyncio.Future[bool],
        pending: PendingJob,
        gone: Callable[[], None],
        span: Span,
    ) -> None:
        """Acknowledges the job once another queue has it; calls `gone()` if none took it."""
        self._handing_on.add(id(pending))
        if span is not NO_SPAN:
            job_spans.end_when_done(span, outcome)

        def confirmed(outcome: asyncio.Future[bool]) -> None:
            self._handing_on.discard(id(pending))
            if is_lost(outcome):
                return  # the job is delivered again
            if outcome.exception() is not None:
                message = f"the job cannot be handed on: {outcome.exception()}"
                self.settlement.end(pending, pending.failed("internal", message))
            elif outcome.result():
                self._after_forward.reached()
                self.settlement.settle(pending)
            else:
                gone()
                self.settlement.settled.set()
                self.pump()
            self._on_change()

        outcome.add_done_callback(confirmed)

    def _send_frame(self, job: Job, frame: AnyFrame) -> None:
        self._link.port.outbox.put(job.reply_to, frame, token=job.reply_token)

    # ---- messages and events

    def cancel(self, message: Cancel) -> None:
        """Cancels a job that runs or waits here, or arrives later.

        With a token: only what runs here and carries it.
        """
        if not message.token:
            self.unwanted.cancel(message)
        for run in self.running.of_request(message.request_id):
            is_users = message.user in ("", run.job.user)
            is_meant = message.token in ("", run.job.reply_token)
            is_old = message.before is None or run.job.attempt < message.before
            if is_users and is_meant and is_old:
                run.cancel()
        self._drop_unwanted(self.waiting.copies_of(message.request_id))

    def end_for_operator(self, request_id: str) -> int:
        """Ends the copies of a job here, and any that arrives later, with a word to its reader.

        Returns how many there were.
        """
        self.unwanted.end_for_operator(request_id)
        runs = self.running.of_request(request_id)
        for run in runs:
            run.fail("cancelled", ENDED_BY_OPERATOR)
        waiting = self.waiting.copies_of(request_id)
        self._drop_unwanted(waiting)
        return len(runs) + len(waiting)

    def supersede(self, message: Supersede) -> None:
        """Ends older attempts of a job that was delivered twice."""
        self.unwanted.supersede(message)
        for run in self.running.of_request(message.request_id):
            if not run.resuming and run.job.attempt < message.attempt:
                run.cancel()
        self._drop_unwanted(self.waiting.copies_of(message.request_id))

    def _drop_unwanted(self, jobs: Iterable[PendingJob]) -> None:
        for pending in jobs:
            if self._settle_unwanted(pending):
                self.waiting.remove(pending)

    def sweep(self) -> None:
        """Ends the waiting jobs that nobody wants any more, and those that have expired.

        A job that waits below the root although the policy keeps the queue at the root came by
        mistake, and may find a slot elsewhere: it goes back.
        """
        self._drop_unwanted(list(self.waiting))
        if self._dispatcher.policy.returns and self._membership.parent_reachable:
            self._return_to_parent(self.waiting.older_than(RETURN_SECONDS))

    def reader_gone(self, queue: str) -> None:
        """An API process has ended, or has reconnected and submits again: cancel these jobs."""
        self.unwanted.reader_gone(queue)
        for run in self.running.of_reader(queue):
            run.cancel()
        self.sweep()

    def engine_ready(self, ready: bool) -> None:
        """The engine works, or has failed: then no job starts."""
        self._engine_ready = ready
        self._starts_changed()

    def interrupt_all(self, reason: str, *, fault: bool) -> None:
        """Every running job must go on elsewhere."""
        for running in self.running:
            running.run.interrupt(reason, fault=fault)

    async def forget(self) -> None:
        """The session is over: runs end without a last frame; the broker delivers them again."""
        tasks = [running.task for running in self.running]
        for task in tasks:
            task.cancel()
        for pending in (*self.waiting, *(running.pending for running in self.running)):
            pending.span.fail("the node lost its session")
            pending.span.end()
        self.waiting.clear()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._handing_on.clear()
        self.unwanted.forget_readers()

    def _starts_changed(self) -> None:
        self._dispatcher.pause_starts(self.run_lock.shared_blocked or not self._engine_ready)
        self._on_change()
        self.pump()
