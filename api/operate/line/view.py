"""Nodes' reports as one list of waiting and one of running jobs. Pure: the caller has the clock.

Rows are made without validation: they come from decoded reports, and there may be thousands a
second.
"""

from collections.abc import Iterable, Mapping

from ninja import Schema

from broker.job_messages import JobReport, RunningJob, WaitingJob
from broker.job_watch import ArrivedReport
from broker.wire import JobClass

MAX_ROWS = 5_000  # of each list


class Waiting(Schema):
    """A job that waits at `node`. `starts_in`: seconds, an estimate; null: nobody knows.

    `age`: seconds since the request came. `reason`: the code of why it waits.
    """

    request_id: str
    user: str
    job_class: JobClass
    model: str
    node: str
    position: int  # from 1
    age: float
    starts_in: float | None
    reason: str
    attempt: int
    restarted: bool


class Running(Schema):
    """A job that runs at `node`, for so many seconds. `trail`: the nodes on its way, root first."""

    request_id: str
    user: str
    job_class: JobClass
    model: str
    node: str
    age: float
    seconds: float
    tokens: int
    trail: list[str]
    attempt: int


class ModelTotals(Schema):
    """How many jobs of a model wait and run; all of them, listed or not."""

    model: str
    waiting: int
    batch: int  # of those that wait
    running: int
    paused: bool = False
    pause_reason: str = ""


class LineView(Schema):
    """What waits and runs. `complete`: no waiting job is left out of the list."""

    at: float  # Unix seconds, to which the ages refer
    models: list[ModelTotals]
    waiting: list[Waiting]
    running: list[Running]
    complete: bool


def line(reports: Iterable[ArrivedReport], monotonic: float, now: float) -> LineView:
    """All jobs, in the order in which they wait; of the running ones the oldest first.

    `monotonic` and `now` (Unix seconds) are the same moment.
    """
    totals: dict[str, ModelTotals] = {}
    waiting: list[Waiting] = []
    running: list[Running] = []
    for latest in sorted(reports, key=lambda latest: (latest.report.model, latest.report.node)):
        report, passed = latest.report, monotonic - latest.arrived
        total = totals.setdefault(
            report.model, ModelTotals(model=report.model, waiting=0, batch=0, running=0)
        )
        total.waiting += report.waiting_count
        total.batch += report.batch_count
        total.running += len(report.running)
        waiting.extend(waiting_row(report, job, passed, now) for job in report.waiting)
        running.extend(running_row(report, job, passed, now) for job in report.running)
    waiting.sort(key=lambda row: (row.model, row.position))
    running.sort(key=lambda row: row.seconds, reverse=True)
    all_waiting = sum(total.waiting for total in totals.values())
    return LineView.model_construct(
        at=now,
        models=list(totals.values()),
        waiting=waiting[:MAX_ROWS],
        running=running[:MAX_ROWS],
        complete=len(waiting[:MAX_ROWS]) >= all_waiting,
    )


def with_pauses(line: LineView, paused: Mapping[str, str]) -> LineView:
    """The line with the models that take no requests, also those without jobs."""
    totals = {total.model: total for total in line.models}
    for model, reason in paused.items():
        total = totals.setdefault(model, ModelTotals(model=model, waiting=0, batch=0, running=0))
        total.paused, total.pause_reason = True, reason
    return line.model_copy(update={"models": list(totals.values())})


def waiting_row(report: JobReport, job: WaitingJob, passed: float, now: float) -> Waiting:
    """A row, `passed` seconds after the report came."""
    starts_in = job.seconds
    if starts_in is not None:
        starts_in = round(max(0.0, starts_in - passed), 1)
    return Waiting.model_construct(
        request_id=job.request_id,
        user=job.user,
        job_class=job.job_class,
        model=report.model,
        node=report.node,
        position=job.position,
        age=_age(job.created, now),
        starts_in=starts_in,
        reason=job.reason,
        attempt=job.attempt,
        restarted=job.restarted,
    )


def running_row(report: JobReport, job: RunningJob, passed: float, now: float) -> Running:
    """The same for a job that runs."""
    return Running.model_construct(
        request_id=job.request_id,
        user=job.user,
        job_class=job.job_class,
        model=report.model,
        node=report.node,
        age=_age(job.created, now),
        seconds=round(job.seconds + passed, 1),
        tokens=job.tokens,
        trail=list(job.trail),
        attempt=job.attempt,
    )


def _age(created: float, now: float) -> float:
    return round(max(0.0, now - created), 1)
