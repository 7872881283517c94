"""What operators ask of one node's jobs: which are here, cancel one, move it, show what it asks.

Every node is asked everything, as nobody knows where a job is; each answers once.
"""

from collections.abc import Callable

from broker.job_messages import (
    PROMPT_LETTERS,
    Answer,
    AnyQuestion,
    CancelJob,
    ChangeClass,
    FindJobs,
    JobReport,
    MoveJob,
    ReportJobs,
    ShowPrompt,
)
from broker.wire import Job, JobClass
from worker.broker_link import BrokerLink
from worker.job_list import JobList
from worker.jobs import Jobs
from worker.pending_job import PendingJob

IS_RUNNING = "it runs already"


class OperatorRequests:
    """Answers each question on the session over which it came."""

    def __init__(self, node: str, jobs: Jobs, job_list: JobList, link: BrokerLink) -> None:
        self._node = node
        self._jobs = jobs
        self._list = job_list
        self._link = link

    def on_message(self, message: ReportJobs | AnyQuestion) -> None:
        """Does what is asked, and says so."""
        if isinstance(message, ReportJobs):
            self._list.watch(message)
        else:
            self._link.port.answer(message.reply_to, self._answer(message))

    def _answer(self, question: AnyQuestion) -> Answer:
        match question:
            case FindJobs():
                return self._find(question)
            case CancelJob():
                return self._cancel(question)
            case MoveJob(before="all"):
                return self._rearrange(question, self._to_front_of_all)
            case MoveJob():
                return self._rearrange(question, self._to_front)
            case ChangeClass():
                return self._rearrange(
                    question, lambda pending: self._to_class(pending, question.job_class)
                )
            case ShowPrompt():
                return self._show(question)

    def _reply(
        self,
        question: AnyQuestion,
        *,
        known: bool = False,
        done: bool = False,
        note: str = "",
        report: JobReport | None = None,
    ) -> Answer:
        return Answer(
            number=question.number,
            node=self._node,
            known=known,
            done=done,
            note=note,
            report=report,
        )

    def _find(self, question: FindJobs) -> Answer:
        report = self._list.find(question.request_id, question.user, question.limit)
        known = bool(report.waiting or report.running)
        return self._reply(question, known=known, done=True, report=report)

    def _cancel(self, question: CancelJob) -> Answer:
        ended = self._jobs.end_for_operator(question.request_id)
        return self._reply(question, known=ended > 0, done=ended > 0, note="cancelled")

    def _rearrange(
        self, question: MoveJob | ChangeClass, change: Callable[[PendingJob], str]
    ) -> Answer:
        copies = self._jobs.waiting.copies_of(question.request_id)
        note = ""
        for pending in copies:
            note = change(pending)
        if copies:
            return self._reply(question, known=True, done=True, note=note)
        runs = self._runs_here(question.request_id)
        return self._reply(question, known=runs, note=IS_RUNNING)

    def _to_front(self, pending: PendingJob) -> str:
        self._jobs.waiting.move_up(pending)
        return f"it is next of the {pending.job.job_class} jobs"

    def _to_front_of_all(self, pending: PendingJob) -> str:
        self._to_class(pending, "interactive")
        self._jobs.waiting.move_up(pending)
        return "it is next of all jobs"

    def _to_class(self, pending: PendingJob, job_class: JobClass) -> str:
        if pending.job.job_class == job_class:
            return f"it is in class {job_class} already"
        self._jobs.waiting.change_class(pending, job_class)
        return f"it waits in class {job_class}"

    def _show(self, question: ShowPrompt) -> Answer:
        job = self._job(question.request_id)
        if job is None:
            return self._reply(question)
        text = prompt_text(job)
        return Answer(
            number=question.number,
            node=self._node,
            known=True,
            done=True,
            prompt=text[:PROMPT_LETTERS],
            letters=len(text),
        )

    def _job(self, request_id: str) -> Job | None:
        """The whole job if it is here."""
        for pending in self._jobs.waiting.copies_of(request_id):
            return pending.whole_job()
        for run in self._jobs.running.of_request(request_id):
            return run.job
        return None

    def _runs_here(self, request_id: str) -> bool:
        return bool(self._jobs.running.of_request(request_id))


def prompt_text(job: Job) -> str:
    """What a job asks, for reading: each turn below the name of its role."""
    if job.pooling is not None:
        texts = (*job.pooling.queries, *job.pooling.inputs)
        return "\n\n".join(text if isinstance(text, str) else str(text) for text in texts)
    if job.prompt_ids:
        return " ".join(map(str, job.prompt_ids))
    if job.messages is None:
        return job.prompt or ""
    turns = [f"{message.role}:\n{message.content}" for message in job.messages]
    return "\n\n".join(turns)
