"""The jobs in one node's hands: each is placed, run, handed on or ended, and its delivery settled exactly once.

A delivery is acknowledged when its job was handed on (confirmed) or ended (final frame confirmed), so a job whose node
dies is delivered again, and is `restarted` from then on: whoever gets to run it asks its reader first.
"""

import asyncio
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec
import structlog

from broker.deadline import expiry, has_passed
from broker.faults import fault_point
from broker.node import NodePort, is_lost
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
from worker.engines.base import Engine
from worker.held_body import with_content, without_content
from worker.membership import Membership
from worker.passing_on import given_back, passed_by
from worker.reader import Questions, Reader
from worker.remembered import Remembered, remember
from worker.run import Ending, JobRun
from worker.rw_lock import ReadersWriterLock
from worker.waiting import HeldJob, WaitingJobs

RETURN_SECONDS = (
    2.0  # where the policy says so, jobs that could not be placed for so long go back to the parent
)

log = structlog.get_logger()


@dataclass(slots=True)
class _Running:
    held: HeldJob
    run: JobRun
    task: asyncio.Task[None]


class Jobs:
    """See the module. `changed()`: a figure has changed; `engine_failed(reason)`: a run ended by the engine's fault."""

    def __init__(
        self,
        name: str,
        model: str,
        incarnation: str,
        engine: Engine | None,
        dispatcher: Dispatcher,
        membership: Membership,
        changed: Callable[[], None],
        engine_failed: Callable[[str], None],
        cap: Cap,
    ) -> None:
        self.port: NodePort
        self.tokens = 0  # of runs that have ended
        self.settled = asyncio.Event()  # set whenever a job leaves this node, or turned out not to
        self.run_lock = ReadersWriterLock(self._starts_changed)
        self.questions = Questions(name, incarnation)
        self.waiting = WaitingJobs(name, dispatcher, cap, self._tell_waiting)
        self._name = name
        self._model = model
        self._incarnation = incarnation
        self._engine = engine
        self._dispatcher = dispatcher
        self._membership = membership
        self._changed = changed
        self._engine_failed = engine_failed
        self._engine_ready = True
        self._runs: dict[int, _Running] = {}
        self._running_users: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._cancelled: Remembered = OrderedDict()  # (request, user)
        self._superseded: Remembered = OrderedDict()  # request
        self._gone: Remembered = OrderedDict()  # reply queues that nobody reads
        self._handing: set[int] = (
            set()
        )  # deliveries whose jobs are on their way elsewhere, not confirmed yet
        self._after_forward = fault_point("forward-confirmed")
        self._after_final = fault_point("final-confirmed")
        self._after_burial = fault_point("buried")

    @property
    def busy(self) -> bool:
        """True while a job is here."""
        return bool(len(self.waiting) or self._runs or self._handing)

    @property
    def handing_over(self) -> bool:
        """True while a job is on its way elsewhere, not confirmed."""
        return bool(self._handing)

    def users(self) -> dict[str, int]:
        """Whose jobs wait or run here or below, and how many."""
        return self._dispatcher.users_below() + self._running_users + self.waiting.users

    def tokens_running(self) -> int:
        """Tokens made by the runs of this moment."""
        return sum(each.run.tokens for each in self._runs.values())

    # ---- arriving, and being placed

    def add(self, job: Job, delivery: Delivery) -> None:
        """A job from a queue."""
        if delivery.redelivered:
            job = msgspec.structs.replace(job, restarted=True)
        self._dispatcher.job_received()
        if job.model != self._model:
            self._refuse(HeldJob(job, delivery))
            return
        held = HeldJob(without_content(job, delivery), delivery, expiry(job))
        self.waiting.add(held, first=self._has_begun(job))
        self.pump()

    def _refuse(self, held: HeldJob) -> None:
        """A job of another model, whatever brought it here: no answer is better than that of the wrong model."""
        self._dispatcher.job_rejected()
        final = self._failed(
            held, "no_node", f"{self._name} serves {self._model}, not {held.job.model}"
        )
        self._bury(held, (), msgspec.structs.replace(final, retryable=True))

    @staticmethod
    def _failed(held: HeldJob, code: FailureCode, message: str) -> Failed:
        return Failed(request_id=held.job.request_id, seq=NO_RUN, code=code, message=message)

    def _has_begun(self, job: Job) -> bool:
        """Whether its reader may be in the middle of an answer, or at least had been through the root's line. A root
        gets its whole line again when it starts again: those jobs have been nowhere.
        """
        return bool(job.trail) and (job.restarted or self._engine is None)

    def pump(self) -> None:
        """Places waiting jobs, in order, until one has to stay."""
        while len(self.waiting):
            if not self._dispatcher.accepting and self._membership.parent_there:
                self._return(list(self.waiting))
                return
            decision = self._dispatcher.decide()
            if isinstance(decision, Hold):
                self.waiting.stay(decision.reason)
                return
            held = self.waiting.take()
            if held is None:
                self.waiting.stay("")
                return
            if self._wanted(held):
                self.waiting.went(held)
                self._place(held, decision)

    def _place(self, held: HeldJob, decision: Run | Forward) -> None:
        match decision:
            case Run():
                self._run(held)
            case Forward(child):
                self._forward(held, child)

    def _return(self, jobs: Iterable[HeldJob]) -> None:
        """Gives these waiting jobs back to the parent, but for those that nobody wants."""
        for held in jobs:
            self.waiting.remove(held)
            if self._wanted(held):
                self._hand_up(held)

    def _wanted(self, held: HeldJob) -> bool:
        """False for a job nobody waits for: it is settled here."""
        job = held.job
        if job.reply_to in self._gone:
            self._settle(held.delivery)
            return False
        if self._is_cancelled(job):
            self._end(held, Finished(request_id=job.request_id, seq=NO_RUN, reason="cancelled"))
            return False
        if not job.restarted and job.attempt < (self._superseded.get(job.request_id) or 0):
            self._settle(held.delivery)
            return False
        if has_passed(held.expires):
            message = "the deadline of the request passed while it waited"
            self._end(held, self._failed(held, "expired", message))
            return False
        return True

    def _is_cancelled(self, job: Job) -> bool:
        keys = ((job.request_id, ""), (job.request_id, job.user))
        found = [self._cancelled[key] for key in keys if key in self._cancelled]
        return any(before is None or job.attempt < before for before in found)

    # ---- running

    def _run(self, held: HeldJob) -> None:
        if self._engine is None:
            raise RuntimeError("a root has no slots, so the rule never says Run")
        self._dispatcher.run_started()
        self._running_users[held.job.user] += 1
        number = next(self._numbers)
        job = with_content(held.job, held.delivery)
        reader = Reader(self.questions, job, self.port)
        run = JobRun(
            self._engine,
            job,
            self._name,
            self._incarnation,
            number,
            reader,
            self.run_lock,
            held.expires,
        )
        task = asyncio.create_task(self._run_to_end(held, run), name=f"run {held.job.request_id}")
        self._runs[number] = _Running(held, run, task)

    async def _run_to_end(self, held: HeldJob, run: JobRun) -> None:
        try:
            ending = await run.run()
            self._after(held, run, ending)
        finally:
            self._dispatcher.run_ended()
            self._running_users[held.job.user] -= 1
            if not self._running_users[held.job.user]:
                del self._running_users[held.job.user]
            self.tokens += run.tokens
            self._runs.pop(run.number, None)
            self.pump()
            self._changed()

    def _after(self, held: HeldJob, run: JobRun, ending: Ending) -> None:
        """What becomes of a job whose run has ended."""
        if isinstance(ending, Interrupted):
            self._interrupted(held, run, ending)
        elif isinstance(ending, Failed) and ending.code == "given_up":
            self._bury(held, run.faults, ending)
        else:
            self._end(held, ending)

    def _interrupted(self, held: HeldJob, run: JobRun, ending: Interrupted) -> None:
        """The job goes on elsewhere. Its reader hears so first: the loss is counted before the next run asks."""
        held.job = msgspec.structs.replace(held.job, restarted=True)

        def told(_read: bool) -> None:
            self._handing.discard(id(held))
            if self._membership.parent_there:
                self._hand_up(held)
            else:
                self.waiting.put_back(held)
                self.pump()

        self._handing.add(id(held))
        if run.begun:
            self.port.outbox.put(held.job.reply_to, ending, sent=told)
        else:
            told(True)
        if not run.stopped and not run.alone:
            self._engine_failed(ending.reason)

    def _bury(self, held: HeldJob, faults: tuple[str, ...], final: Failed) -> None:
        """Makes the job a dead letter, then tells its reader, then settles it: safe if this node dies."""
        log.error("job given up", node=self._name, request_id=held.job.request_id, faults=faults)
        job = passed_by(held, self._name)

        def buried(outcome: asyncio.Future[bool]) -> None:
            if is_lost(outcome):
                return  # the job is delivered again
            if outcome.exception() is not None or not outcome.result():
                log.error("dead letter not kept", node=self._name, request_id=held.job.request_id)
            self._after_burial.reached()
            self._end(held, final)

        self.port.dead_letter(job, reason=final.message, faults=faults).add_done_callback(buried)

    def _end(self, held: HeldJob, final: AnyFrame) -> None:
        """Sends the last frame; the delivery is acknowledged once the broker has it, or nobody reads it."""

        def sent(_read: bool) -> None:
            self._after_final.reached()
            self._settle(held.delivery)

        self.port.outbox.put(held.job.reply_to, final, sent=sent)

    # ---- handing on

    def _forward(self, held: HeldJob, child: str) -> None:
        self._dispatcher.forwarded(child, held.job.user)

        def gone() -> None:
            log.info("a child's edge is gone", node=self._name, child=child)
            self._dispatcher.remove_child(child)
            self.waiting.put_back(held)

        self._hand_over(self.port.forward(child, passed_by(held, self._name)), held, gone)

    def _hand_up(self, held: HeldJob) -> None:
        """A node that drains, leaves or fails gives its jobs back to its parent."""

        def gone() -> None:
            self._membership.parent_there = False
            self.waiting.put_back(held)

        self._hand_over(
            self.port.return_to_parent(self._membership.parent or "", given_back(held)), held, gone
        )

    def _hand_over(
        self, outcome: asyncio.Future[bool], held: HeldJob, gone: Callable[[], None]
    ) -> None:
        """Acknowledges `held` once the broker has confirmed where it went; `gone()` if it went nowhere."""
        self._handing.add(id(held))

        def confirmed(outcome: asyncio.Future[bool]) -> None:
            self._handing.discard(id(held))
            if is_lost(outcome):
                return  # the job is delivered again
            if outcome.exception() is not None:
                message = f"the job cannot be handed on: {outcome.exception()}"
                self._end(held, self._failed(held, "internal", message))
            elif outcome.result():
                self._after_forward.reached()
                self._settle(held.delivery)
            else:
                gone()
                self.settled.set()
                self.pump()
            self._changed()

        outcome.add_done_callback(confirmed)

    def _settle(self, delivery: Delivery) -> None:
        delivery.ack()
        delivery.body = b""  # some things that knew the job live on until garbage is collected
        self.settled.set()

    def _tell_waiting(self, reply_to: str, frame: AnyFrame) -> None:
        self.port.outbox.put(reply_to, frame)

    # ---- what the broker and others tell

    def cancel(self, message: Cancel) -> None:
        """The job may run here, be held here, or arrive later; elsewhere it is not ours to find."""
        remember(self._cancelled, (message.request_id, message.user), message.before)
        for each in self._runs_of(message.request_id):
            job = each.run.job
            if message.user in ("", job.user) and (
                message.before is None or job.attempt < message.before
            ):
                each.run.cancel()
        self._drop_unwanted(message.request_id)

    def supersede(self, message: Supersede) -> None:
        """Ends what older attempts left: of a job that came twice."""
        remember(self._superseded, message.request_id, message.attempt)
        for each in self._runs_of(message.request_id):
            if not each.run.asking and each.run.job.attempt < message.attempt:
                each.run.cancel()
        self._drop_unwanted(message.request_id)

    def _runs_of(self, request_id: str) -> list[_Running]:
        return [each for each in self._runs.values() if each.run.job.request_id == request_id]

    def _drop_unwanted(self, request_id: str) -> None:
        self._drop(self.waiting.of(request_id))

    def _drop(self, jobs: Iterable[HeldJob]) -> None:
        for held in jobs:
            if not self._wanted(held):
                self.waiting.remove(held)

    def sweep(self) -> None:
        """Ends the waiting jobs that nobody wants any more, and those out of time. What waits below a root although
        the policy keeps the line at the root came by mistake, and may find a slot elsewhere.
        """
        self._drop(list(self.waiting))
        if self._dispatcher.policy.returns and self._membership.parent_there:
            self._return(self.waiting.older_than(RETURN_SECONDS))

    def reader_gone(self, queue: str) -> None:
        """An API process has ended, or lost its connection and submits again: nobody waits for these jobs."""
        remember(self._gone, queue, None)
        for each in self._runs.values():
            if each.held.job.reply_to == queue:
                each.run.cancel()
        self.sweep()

    def engine_ready(self, ready: bool) -> None:
        """The engine is there, or is not: then no job starts."""
        self._engine_ready = ready
        self._starts_changed()

    def interrupt_all(self, reason: str, *, fault: bool) -> None:
        """Every running job must go on elsewhere."""
        for each in self._runs.values():
            each.run.interrupt(reason, fault=fault)

    async def forget(self) -> None:
        """The session is over: every run ends without a last frame; the broker delivers all of it again."""
        runs = [each.task for each in self._runs.values()]
        for task in runs:
            task.cancel()
        self.waiting.clear()
        await asyncio.gather(*runs, return_exceptions=True)
        self._handing.clear()
        self._gone.clear()  # a broker that is cut off from its cluster calls every reader gone before it says so

    def _starts_changed(self) -> None:
        self._dispatcher.pause_starts(self.run_lock.shared_blocked or not self._engine_ready)
        self._changed()
        self.pump()
