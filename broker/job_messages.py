"""The messages of operators' tools: what waits and runs where, and what to do with a job.

An operator's process broadcasts a question; each node answers it once, to the queue that the
question names. While somebody watches, nodes publish their jobs on the events exchange by
themselves. Nodes of the former release do not know these: they warn and do not answer.
"""

from typing import Annotated, Literal

import msgspec

from broker.bounds import Count, JobCount, Moment, Name, NodeName, Note, Seconds, Text, Trail
from broker.join_messages import AnyJoinMessage
from broker.wire import AnyControl, Control, JobClass, Wire

MAX_LISTED = 1_000  # waiting jobs in one report
MAX_RUNNING = 10_000
REPORT_SECONDS = 15.0  # how long nodes go on publishing after they were asked to
PROMPT_LETTERS = 20_000  # of a prompt that is shown

Listed = Annotated[int, msgspec.Meta(ge=0, le=MAX_LISTED)]
Lease = Annotated[float, msgspec.Meta(gt=0, le=60)]
Place = Literal["class", "all"]


class ReportJobs(Control, kw_only=True, tag="report_jobs"):
    """Publish your jobs for so many seconds: now, and whenever they change."""

    seconds: Lease
    limit: Listed  # waiting jobs in each report


class Question(Control, kw_only=True, tag="question"):
    """Base of what is asked of all nodes at once. `reply_to`: the watch queue for the answers."""

    number: Name
    reply_to: Name


class FindJobs(Question, kw_only=True, tag="find_jobs"):
    """Which jobs of this user are here, or whose id begins so? Neither: all, up to the limit."""

    request_id: Name = ""
    user: Name | None = None
    limit: Listed


class CancelJob(Question, kw_only=True, tag="cancel_job"):
    """End this job, also if it arrives later, and tell its reader that an operator did it."""

    request_id: Name


class MoveJob(Question, kw_only=True, tag="move_job"):
    """Put this waiting job before the others of its class, or of all (as an interactive one)."""

    request_id: Name
    before: Place


class ChangeClass(Question, kw_only=True, tag="change_class"):
    """Serve this waiting job as one of that class."""

    request_id: Name
    job_class: JobClass


class ShowPrompt(Question, kw_only=True, tag="show_prompt"):
    """What does this job ask? At most PROMPT_LETTERS of it."""

    request_id: Name


AnyQuestion = FindJobs | CancelJob | MoveJob | ChangeClass | ShowPrompt
AnyInboxMessage = AnyControl | ReportJobs | AnyQuestion | AnyJoinMessage


class WaitingJob(Wire, kw_only=True):
    """A job in a node's queue. `seconds`: estimate to its start; `created`: by the API's clock."""

    request_id: Name
    user: Name
    job_class: JobClass
    position: Count  # from 1
    created: Moment
    seconds: Seconds | None = None  # None: nothing is known
    reason: Name = ""  # the code of why it waits
    attempt: Count = 1
    restarted: bool = False


class RunningJob(Wire, kw_only=True):
    """A job in one of a node's slots, for so many seconds."""

    request_id: Name
    user: Name
    job_class: JobClass
    created: Moment
    seconds: Seconds
    tokens: Count
    trail: Trail
    attempt: Count = 1


class JobReport(Wire, kw_only=True):
    """The jobs at one node: the first of those that wait, the number of all, and what runs."""

    node: NodeName
    model: Name
    waiting_count: JobCount
    batch_count: JobCount  # of these, in class batch
    waiting: Annotated[tuple[WaitingJob, ...], msgspec.Meta(max_length=MAX_LISTED)] = ()
    running: Annotated[tuple[RunningJob, ...], msgspec.Meta(max_length=MAX_RUNNING)] = ()


class Answer(Wire, kw_only=True):
    """A node's answer to a question. `known`: it has the job; `done`: and did what was asked.

    `note`: for the operator, what was done or why not.
    """

    number: Name
    node: NodeName
    known: bool = False
    done: bool = False
    note: Note = ""
    report: JobReport | None = None
    prompt: Text | None = None
    letters: Count = 0  # of the whole prompt


class SettingChanged(Wire, kw_only=True):
    """An API process has stored a setting; the others read it again."""

    process: Name  # the sender, which ignores its own copy
    setting: Name
