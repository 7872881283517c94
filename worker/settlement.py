"""How a job leaves this node for good: last frame or dead letter, then acknowledgement."""

import asyncio

import structlog

from broker.faults import fault_point
from broker.node import is_lost
from broker.tracing import NO_SPAN
from broker.wire import AnyFrame, Failed
from worker.broker_link import BrokerLink
from worker.pending_job import PendingJob

log = structlog.get_logger()


class Settlement:
    """Settles deliveries, each once. `settled` is set whenever one is, or a job could not leave."""

    def __init__(self, name: str, link: BrokerLink) -> None:
        self.settled = asyncio.Event()
        self._name = name
        self._link = link
        self._after_final = fault_point("final-confirmed")
        self._after_dead_letter = fault_point("buried")

    def settle(self, pending: PendingJob) -> None:
        """Acknowledges the job: another queue has it, or nobody reads its answer."""
        if pending.span is not NO_SPAN:
            pending.span.end()
        pending.delivery.ack()
        pending.delivery.body = b""  # references to it live on until garbage is collected
        self.settled.set()

    def end(self, pending: PendingJob, final: AnyFrame) -> None:
        """Sends the last frame; acknowledges the job once the broker has it, or nobody reads it."""

        def sent(_read: bool) -> None:
            self._after_final.reached()
            self.settle(pending)

        job = pending.job
        self._link.port.outbox.put(job.reply_to, final, sent=sent, token=job.reply_token)

    def dead_letter(self, pending: PendingJob, faults: tuple[str, ...], final: Failed) -> None:
        """Makes the job a dead letter, then tells its reader, then settles it.

        In this order nothing is lost if the node dies in between.
        """
        request_id = pending.job.request_id
        log.error("job given up", node=self._name, request_id=request_id, faults=faults)
        job = pending.job_from(self._name)

        def confirmed(outcome: asyncio.Future[bool]) -> None:
            if is_lost(outcome):
                return  # the job is delivered again
            if outcome.exception() is not None or not outcome.result():
                log.error("dead letter not kept", node=self._name, request_id=request_id)
            self._after_dead_letter.reached()
            self.end(pending, final)

        letter = self._link.port.dead_letter(job, reason=final.message, faults=faults)
        letter.add_done_callback(confirmed)
