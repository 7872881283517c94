"""The jobs at one node: each is placed, run, handed on or ended, and its delivery settled once.

A delivery is acknowledged when its job was handed on (confirmed) or ended (final frame confirmed).
So a job whose node dies is delivered again, and is `restarted` from then on: the node that gets to
run it first requests to resume.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec
import structlog

from broker.deadline import has_passed
from broker.faults import fault_point
from broker.node import is_lost
from broker.session import Delivery
from broker.wire import (
    NO_RUN,
    AnyFrame,
    Cancel,
    Failed,
    FailureCode,
    Finished,
    Interrupted,
    Job,
    Supersede,
)
from topology.cap import Cap
from topology.dispatch import Dispatcher, Forward, Hold, Run
from worker.broker_link import BrokerLink
from worker.engines.base import Engine
from worker.membership import Membership
from worker.pending_job import PendingJob
from worker.recent_attempts import RecentAttempts
from worker.reply_channel import BrokerReplyChannel, ResumeRequests
from worker.run import Ending, JobRun
from worker.rw_lock import ReadersWriterLock
from worker.waiting import WaitingJobs

RETURN_SECONDS = 2.0  # jobs not placed for so long go back to the parent, if the policy says so

log = structlog.get_logger()


@dataclass(slots=True)
class _Running:
    pending: PendingJob
    run: JobRun
    task: asyncio.Task[None]


class Jobs:
    """See the module.

    `on_change()` is called when a counter has changed, `on_engine_failure(reason)` when a run ended
    by the engine's fault.
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
    ) -> None:
        self.tokens = 0  # of runs that have ended
        self.settled = asyncio.Event()  # set whenever a job leaves this node, or could not
        self.run_lock = ReadersWriterLock(self._starts_changed)
        self.resume_requests = ResumeRequests(name, incarnation, link)
        self.waiting = WaitingJobs(name, dispatcher, cap, self._send_frame)
        self._name = name
        self._model = model
        self._incarnation = incarnation
        self._engine = engine
        self._link = link
        self._dispatcher = dispatcher
        self._membership = membership
        self._on_change = on_change
        self._on_engine_failure = on_engine_failure
        self._engine_ready = True
        self._runs: dict[int, _Running] = {}
        self._running_users: Counter[str] = Counter()
        self._run_numbers = itertools.count(1)
        self._cancelled = RecentAttempts()  # by (request, user)
        self._superseded = RecentAttempts()  # by request
        self._gone_readers = RecentAttempts()  # reply queues
        self._handing_on: set[int] = set()  # ids of pending jobs, not confirmed elsewhere yet
        self._after_forward = fault_point("forward-confirmed")
        self._after_final = fault_point("final-confirmed")
        self._after_dead_letter = fault_point("buried")

    @property
    def busy(self) -> bool:
        """True while a job is here."""
        return bool(len(self.waiting) or self._runs or self._handing_on)

    @property
    def handing_on(self) -> bool:
        """True while a job is on its way elsewhere, not confirmed."""
        return bool(self._handing_on)

    def users(self) -> dict[str, int]:
        """Jobs by user, waiting or running, here or below."""
        return self._dispatcher.users_below() + self._running_users + self.waiting.users

    def tokens_running(self) -> int:
        """Tokens generated so far by the present runs."""
        return sum(running.run.tokens for running in self._runs.values())

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
        self.waiting.add(pending, first=self._has_begun(job))
        self.pump()

    def _refuse(self, pending: PendingJob) -> None:
        """A job of another model came here by mistake: better no answer than a wrong model's."""
        self._dispatcher.job_rejected()
        message = f"{self._name} serves {self._model}, not {pending.job.model}"
        final = self._failed(pending, "no_node", message)
        self._dead_letter(pending, (), msgspec.structs.replace(final, retryable=True))

    @staticmethod
    def _failed(pending: PendingJob, code: FailureCode, message: str) -> Failed:
        return Failed(request_id=pending.job.request_id, seq=NO_RUN, code=code, message=message)

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
                self.waiting.hold(decision.reason)
                return
            pending = self.waiting.take()
            if pending is None:
                self.waiting.hold("")
                return
            if not self._settle_unwanted(pending):
                self.waiting.departed(pending)
                self._place(pending, decision)

    def _place(self, pending: PendingJob, decision: Run | Forward) -> None:
        match decision:
            case Run():
                self._run(pending)
            case Forward(child):
                self._forward(pending, child)

    def _return_to_parent(self, jobs: Iterable[PendingJob]) -> None:
        """Gives these waiting jobs back to the parent, except those that nobody wants."""
        for pending in jobs:
            self.waiting.remove(pending)
            if not self._settle_unwanted(pending):
                self._give_back(pending)

    def _settle_unwanted(self, pending: PendingJob) -> bool:
        """Ends or drops a job whose answer nobody wants any more. True if it did."""
        job = pending.job
        if self._gone_readers.covers(job.reply_to):
            self._settle(pending.delivery)
            return True
        if self._is_cancelled(job):
            self._end(pending, Finished(request_id=job.request_id, seq=NO_RUN, reason="cancelled"))
            return True
        if not job.restarted and self._superseded.covers(job.request_id, job.attempt):
            self._settle(pending.delivery)
            return True
        if has_passed(pending.expires):
            message = "the deadline of the request passed while it waited"
            self._end(pending, self._failed(pending, "expired", message))
            return True
        return False

    def _is_cancelled(self, job: Job) -> bool:
        by_anybody, by_user = (job.request_id, ""), (job.request_id, job.user)
        return self._cancelled.covers(by_anybody, job.attempt) or self._cancelled.covers(
            by_user, job.attempt
        )

    # ---- running

    def _run(self, pending: PendingJob) -> None:
        if self._engine is None:
            raise RuntimeError("a root has no slots, so the dispatcher never decides Run")
        self._dispatcher.run_started()
        self._running_users[pending.job.user] += 1
        number = next(self._run_numbers)
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
        )
        task = asyncio.create_task(
            self._run_to_end(pending, run), name=f"run {pending.job.request_id}"
        )
        self._runs[number] = _Running(pending, run, task)

    async def _run_to_end(self, pending: PendingJob, run: JobRun) -> None:
        try:
            ending = await run.run()
            self._after(pending, run, ending)
        finally:
            self._dispatcher.run_ended()
            self._running_users[pending.job.user] -= 1
            if not self._running_users[pending.job.user]:
                del self._running_users[pending.job.user]
            self.tokens += run.tokens
            self._runs.pop(run.number, None)
            self.pump()
            self._on_change()

    def _after(self, pending: PendingJob, run: JobRun, ending: Ending) -> None:
        """Decides what becomes of a job whose run has ended."""
        if isinstance(ending, Interrupted):
            self._interrupted(pending, run, ending)
        elif isinstance(ending, Failed) and ending.code == "given_up":
            self._dead_letter(pending, run.faults, ending)
        else:
            self._end(pending, ending)

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
            self._link.port.outbox.put(pending.job.reply_to, ending, sent=sent)
        else:
            sent(True)
        if not run.stopped and not run.isolated:
            self._on_engine_failure(ending.reason)

    def _dead_letter(self, pending: PendingJob, faults: tuple[str, ...], final: Failed) -> None:
        """Makes the job a dead letter, then tells its reader, then settles it.

        In this order nothing is lost if the node dies in between.
        """
        log.error("job given up", node=self._name, request_id=pending.job.request_id, faults=faults)
        job = pending.job_from(self._name)

        def confirmed(outcome: asyncio.Future[bool]) -> None:
            if is_lost(outcome):
                return  # the job is delivered again
            if outcome.exception() is not None or not outcome.result():
                log.error(
                    "dead letter not kept", node=self._name, request_id=pending.job.request_id
                )
            self._after_dead_letter.reached()
            self._end(pending, final)

        self._link.port.dead_letter(job, reason=final.message, faults=faults).add_done_callback(
            confirmed
        )

    def _end(self, pending: PendingJob, final: AnyFrame) -> None:
        """Sends the last frame; acknowledges the job once the broker has it, or nobody reads it."""

        def sent(_read: bool) -> None:
            self._after_final.reached()
            self._settle(pending.delivery)

        self._link.port.outbox.put(pending.job.reply_to, final, sent=sent)

    # ---- handing on

    def _forward(self, pending: PendingJob, child: str) -> None:
        self._dispatcher.forwarded(child, pending.job.user)

        def gone() -> None:
            log.info("a child's edge is gone", node=self._name, child=child)
            self._dispatcher.remove_child(child)
            self.waiting.put_back(pending)

        outcome = self._link.port.forward(child, pending.job_from(self._name))
        self._settle_when_confirmed(outcome, pending, gone)

    def _give_back(self, pending: PendingJob) -> None:
        """Sends the job to the parent's queue: this node drains, leaves or fails."""

        def gone() -> None:
            self._membership.parent_is_gone()
            self.waiting.put_back(pending)

        parent = self._membership.parent or ""
        outcome = self._link.port.return_to_parent(parent, pending.job_for_parent())
        self._settle_when_confirmed(outcome, pending, gone)

    def _settle_when_confirmed(
        self, outcome: asyncio.Future[bool], pending: PendingJob, gone: Callable[[], None]
    ) -> None:
        """Acknowledges the job once another queue has it; calls `gone()` if none took it."""
        self._handing_on.add(id(pending))

        def confirmed(outcome: asyncio.Future[bool]) -> None:
            self._handing_on.discard(id(pending))
            if is_lost(outcome):
                return  # the job is delivered again
            if outcome.exception() is not None:
                message = f"the job cannot be handed on: {outcome.exception()}"
                self._end(pending, self._failed(pending, "internal", message))
            elif outcome.result():
                self._after_forward.reached()
                self._settle(pending.delivery)
            else:
                gone()
                self.settled.set()
                self.pump()
            self._on_change()

        outcome.add_done_callback(confirmed)

    def _settle(self, delivery: Delivery) -> None:
        delivery.ack()
        delivery.body = b""  # references to the delivery live on until garbage is collected
        self.settled.set()

    def _send_frame(self, reply_to: str, frame: AnyFrame) -> None:
        self._link.port.outbox.put(reply_to, frame)

    # ---- messages and events

    def cancel(self, message: Cancel) -> None:
        """Cancels a job that runs or waits here, or arrives later."""
        self._cancelled.add((message.request_id, message.user), message.before)
        for run in self._runs_of(message.request_id):
            is_users = message.user in ("", run.job.user)
            if is_users and (message.before is None or run.job.attempt < message.before):
                run.cancel()
        self._drop_unwanted(self.waiting.copies_of(message.request_id))

    def supersede(self, message: Supersede) -> None:
        """Ends older attempts of a job that was delivered twice."""
        self._superseded.add(message.request_id, message.attempt)
        for run in self._runs_of(message.request_id):
            if not run.resuming and run.job.attempt < message.attempt:
                run.cancel()
        self._drop_unwanted(self.waiting.copies_of(message.request_id))

    def _runs_of(self, request_id: str) -> list[JobRun]:
        runs = [running.run for running in self._runs.values()]
        return [run for run in runs if run.job.request_id == request_id]

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
        self._gone_readers.add(queue)
        for running in self._runs.values():
            if running.pending.job.reply_to == queue:
                running.run.cancel()
        self.sweep()

    def engine_ready(self, ready: bool) -> None:
        """The engine works, or has failed: then no job starts."""
        self._engine_ready = ready
        self._starts_changed()

    def interrupt_all(self, reason: str, *, fault: bool) -> None:
        """Every running job must go on elsewhere."""
        for running in self._runs.values():
            running.run.interrupt(reason, fault=fault)

    async def forget(self) -> None:
        """The session is over: runs end without a last frame; the broker delivers them again."""
        tasks = [running.task for running in self._runs.values()]
        for task in tasks:
            task.cancel()
        self.waiting.clear()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._handing_on.clear()
        # a broker that is cut off from its cluster reports every reader gone before it closes
        self._gone_readers.clear()

    def _starts_changed(self) -> None:
        self._dispatcher.pause_starts(self.run_lock.shared_blocked or not self._engine_ready)
        self._on_change()
        self.pump()
