"""The spans of jobs at one node: a stay, each way on, and the engine's work.

process root -> send n1 -> process n1 -> chat MODEL
"""

import asyncio

import msgspec

from broker.tracing import Span, Tracer, Value
from broker.wire import Failed, Finished, Interrupted, Job
from topology import names
from worker.pending_job import PendingJob
from worker.run import Ending, JobRun


class JobSpans:
    """Makes them. Callers check `enabled` first: where nothing is traced that is all it costs."""

    def __init__(self, node: str, tracer: Tracer) -> None:
        self.enabled = tracer.enabled
        self._node = node
        self._tracer = tracer

    def arrived(self, pending: PendingJob) -> None:
        """The job is at this node from now on, until its delivery is settled."""
        job = pending.job
        queue = names.node(self._node)
        pending.span = self._tracer.start(
            f"process {queue}",
            "consumer",
            job.traceparent,
            messaging__system="rabbitmq",
            messaging__operation__type="process",
            messaging__operation__name="process",
            messaging__destination__name=queue,
            messaging__message__id=job.request_id,
            canopy__node=self._node,
            canopy__attempt=job.attempt,
            canopy__restarted=job.restarted,
        )

    def sending(self, pending: PendingJob, job: Job, queue: str) -> tuple[Job, Span]:
        """The job is published to another node's queue: as what follows from that, and the span."""
        span = self._tracer.start(
            f"send {queue}",
            "producer",
            pending.span.traceparent,
            messaging__system="rabbitmq",
            messaging__operation__type="send",
            messaging__operation__name="send",
            messaging__destination__name=queue,
            messaging__message__id=job.request_id,
        )
        return msgspec.structs.replace(job, traceparent=span.traceparent or job.traceparent), span

    def running(self, pending: PendingJob, job: Job) -> Span:
        """The engine works on the job."""
        operation = _operation(job)
        return self._tracer.start(
            f"{operation} {job.model}",
            "internal",
            pending.span.traceparent,
            gen_ai__operation__name=operation,
            gen_ai__provider__name="canopy",
            gen_ai__request__model=job.model,
            gen_ai__response__id=job.request_id,
            canopy__node=self._node,
            **_sampling(job),
        )


def _operation(job: Job) -> str:
    if job.pooling is not None:
        return "embeddings"
    return "text_completion" if job.messages is None else "chat"


def end_when_done(span: Span, outcome: "asyncio.Future[bool]") -> None:
    """Ends a `sending` span when the broker has confirmed the job, or refused it."""

    def done(outcome: "asyncio.Future[bool]") -> None:
        if outcome.cancelled() or outcome.exception() is not None:
            span.fail("not confirmed")
        elif not outcome.result():
            span.fail("no such queue")
        span.end()

    outcome.add_done_callback(done)


def end_run(span: Span, run: JobRun, ending: Ending | None) -> None:
    """Ends a `running` span. No ending: the run was abandoned with its session."""
    span.set(gen_ai__usage__input_tokens=run.prompt_tokens)
    span.set(gen_ai__usage__output_tokens=run.tokens)
    if run.first_text is not None:
        span.set(gen_ai__response__time_to_first_chunk=run.first_text - run.began)
    match ending:
        case Finished():
            span.set(gen_ai__response__finish_reasons=[ending.reason])
        case Failed():
            span.set(error__type=ending.code)
            span.fail(ending.code)
        case Interrupted():
            span.set(error__type="interrupted")
            span.fail("interrupted")
        case None:
            span.fail("abandoned")
    span.end()


def _sampling(job: Job) -> dict[str, Value]:
    """The parameters of the request, without the user's own texts."""
    sampling = job.sampling
    attributes: dict[str, Value] = {
        "gen_ai__request__temperature": sampling.temperature,
        "gen_ai__request__top_p": sampling.top_p,
        "gen_ai__request__frequency_penalty": sampling.frequency_penalty,
        "gen_ai__request__presence_penalty": sampling.presence_penalty,
    }
    if sampling.max_tokens is not None:
        attributes["gen_ai__request__max_tokens"] = sampling.max_tokens
    if sampling.top_k > 0:
        attributes["gen_ai__request__top_k"] = sampling.top_k
    if sampling.reproducible and sampling.seed is not None:
        attributes["gen_ai__request__seed"] = sampling.seed
    return attributes
