"""The messages that cross the broker: frozen structs, JSON, one `encode` and one `decode`.

Unknown fields are ignored, so that an older process understands a newer one; missing or mistyped ones raise
DecodeError, which the consumer turns into a dead letter with the reason. Times are Unix seconds.
`tests/golden/` holds one JSON file a message.
"""

from types import UnionType
from typing import Annotated, Any, Literal, TypedDict, TypeVar, overload

import msgspec

from broker.bounds import (
    Count,
    Held,
    Moment,
    Name,
    NodeName,
    NodeNames,
    Note,
    Penalty,
    Positive,
    Seconds,
    Slots,
    TokenId,
    Trail,
    Unit,
    UserCounts,
)

Role = Literal["system", "user", "assistant"]
JobClass = Literal["interactive", "batch"]

FinishReason = Literal["stop", "length", "cancelled"]
NodeStatus = Literal["starting", "idle", "busy", "draining", "drained", "failed", "stopped"]
MOST_BIASES = 1024  # tokens
MAX_ATTEMPTS = 3  # a job whose runs were lost so often is given up
FailureCode = Literal["invalid", "too_long", "engine", "expired", "no_node", "given_up", "internal"]


class DecodeError(ValueError):
    """A message body that is not what its consumer expects; the text says which field and why."""


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all wire structs. (msgspec does not inherit `kw_only`, so each repeats it.)"""


class ChatMessage(Wire, kw_only=True, omit_defaults=False):
    """One turn of a dialogue."""

    role: Role
    content: str


class Sampling(Wire, kw_only=True):
    """How the next token is chosen and when to stop. Validated by the API, trusted by engines."""

    max_tokens: Count | None = None  # None: the engine's own limit
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 1.0  # 0: greedy
    top_p: Unit = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=2**53)] = 0  # 0: off
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    reproducible: bool = (
        False  # the user named the seed: who else is computed must not change the text
    )
    stop: Annotated[tuple[str, ...], msgspec.Meta(max_length=1024)] = ()
    min_p: Unit = 0.0  # of the likeliest token's probability; 0: off
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=1000)] = (
        1.0  # of what the prompt or the answer has; 1: off
    )
    frequency_penalty: Penalty = 0.0  # for each time that the answer has it
    presence_penalty: Penalty = 0.0  # once, if the answer has it
    logit_bias: Annotated[
        dict[Count, Penalty], msgspec.Meta(max_length=MOST_BIASES)
    ] = {}  # by token id, up to MOST_BIASES
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=1000)] | None = (
        None  # tell each token's probability, and that of so many of the likeliest in its place
    )


class Job(Wire, kw_only=True):
    """One request on its way down the tree. Exactly one of `messages` and `prompt` is set."""

    request_id: Name
    model: Name
    reply_to: Name  # the reply queue of the API process that asked
    created: Moment
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    sampling: Sampling = Sampling()
    user: Name = ""
    job_class: JobClass = "interactive"  # who waits for it: interactive jobs come before batch jobs
    work: Positive = 1.0  # tokens that it is charged with when users are treated fairly; see api.requests.accounting
    expected: Positive | None = (
        None  # of them, those of this job; the others are owed for earlier ones
    )
    share: Positive = 1.0  # what its user is entitled to, beside a user with 1
    attempt: Count = 1  # of its next run, unless it was restarted: then the reader says
    restarted: bool = False  # a node gave it back or died with it: ask the reader (ResumeRequest) before running it
    seconds_left: Seconds | None = (
        None  # from when this copy was published, until nobody wants the answer
    )
    deadline: Moment | None = (
        None  # the same as a moment, from older API processes; trusts all clocks to agree
    )
    truncate: bool = False  # leave out the oldest turns of `messages` if they do not fit; else such a job is refused
    trail: Trail = ()  # nodes that have handled it, root first
    delivered: str = ""  # text the reader already has, when a job is restarted
    delivered_ids: tuple[TokenId, ...] = ()  # the tokens it was made of, if the engine told them


NO_RUN = -1


class Frame(Wire, kw_only=True, tag_field="kind"):
    """Base of what a node tells the reader of one request. The frames of a run are numbered from 0 (`seq`) and taken
    once, in that order, while its `attempt` is the newest. Waiting, ResumeRequest and the end of a job that was not running
    have no number (NO_RUN) and count whatever the attempt.
    """

    request_id: Name
    attempt: Count = 1
    seq: Annotated[int, msgspec.Meta(ge=NO_RUN, le=2**53)] = 0


class FrameNumber(TypedDict):
    """A frame's identity, for `Start(**number, ...)`."""

    request_id: str
    attempt: int
    seq: int


class Waiting(Frame, kw_only=True, tag="waiting"):
    """The job is held and not running yet. `position`: its place in the line, from 1; `seconds`: until it starts, as
    estimated now. None where nothing orders the jobs, or nothing is known.
    """

    node: Name
    reason: str
    position: Count | None = None
    seconds: Seconds | None = None


class ResumeRequest(Frame, kw_only=True, tag="asking"):
    """A restarted job has a slot; its node asks what the reader has. The answer is ResumeGrant, or Cancel."""

    node: NodeName
    incarnation: Name = msgspec.field(name="boot")  # "boot" on the wire
    number: Count  # repeated in the answer


class Start(Frame, kw_only=True, tag="start"):
    """A run begins."""

    node: Name
    incarnation: Name = msgspec.field(default="", name="boot")


class Interrupted(Frame, kw_only=True, tag="interrupted"):
    """The run ended early; the job goes on elsewhere. `fault`: the run failed, and counts against the job."""

    reason: str
    fault: bool = False


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """How likely a token of the answer was. Tokens are told as bytes (in JSON base64), as one may be a part of a
    character. Logprobs are natural logarithms of the model's own distribution, at least LEAST_LOGPROB.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()  # the likeliest in its place, best first


LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON does not have


class Delta(Frame, kw_only=True, tag="delta"):
    """New text. `tokens`: how many tokens it stands for; `ids`: which, so that another node can go on exactly;
    `logprobs`: if they were asked for and the engine has them, those of the tokens that are seen in the text.
    """

    text: str
    tokens: Count = 1
    ids: tuple[TokenId, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Finished(Frame, kw_only=True, tag="finished"):
    """The answer is complete."""

    reason: FinishReason
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    omitted_messages: Count = (
        0  # oldest turns of the job that were left out of the prompt; see Job.truncate
    )


class Failed(Frame, kw_only=True, tag="failed"):
    """The job ended without an answer; `retryable` says whether the same request may succeed later."""

    code: FailureCode
    message: str
    retryable: bool = False


AnyFrame = Waiting | ResumeRequest | Start | Delta | Interrupted | Finished | Failed


class Frames(Wire, kw_only=True):
    """What a node has to say to one API process, coalesced."""

    frames: tuple[AnyFrame, ...]


class Control(Wire, kw_only=True, tag_field="kind"):
    """Base of what is asked of a node through its inbox."""


class Cancel(Control, kw_only=True, tag="cancel"):
    """Nobody wants this answer any more; or, with `before`, nobody reads the copies of its job numbered below that."""

    request_id: Name
    before: Count | None = None
    user: Name = ""  # if given: only if the job is this user's


class Supersede(Control, kw_only=True, tag="supersede"):
    """A newer attempt goes on: runs of older ones end. Copies of the job that would ask first are left alone."""

    request_id: Name
    attempt: Count


class ResumeGrant(Control, kw_only=True, tag="continue"):
    """The reader's answer to ResumeRequest: run on from `delivered`, as this attempt."""

    request_id: Name
    number: Count
    attempt: Count
    delivered: str = ""
    delivered_ids: tuple[TokenId, ...] = ()
    faults: tuple[
        str, ...
    ] = ()  # why earlier runs were lost: a line for each that counts against the job


class Drain(Control, kw_only=True, tag="drain"):
    """Finish what runs, accept nothing new, stay registered."""


class Resume(Control, kw_only=True, tag="resume"):
    """Accept jobs again."""


class Attach(Control, kw_only=True, tag="attach"):
    """Hang below another parent: for good, or until the present one (`home`) is back."""

    parent: NodeName
    for_good: bool = True


class Ping(Control, kw_only=True, tag="ping"):
    """Publish your state now."""


class Capacity(Control, kw_only=True, tag="capacity"):
    """A child's absolute counters, told to its parent on every change and every few seconds. `number` grows within one
    `incarnation`, so that a late or repeated one is known for what it is.
    """

    node: NodeName
    incarnation: Name = msgspec.field(default="", name="boot")
    number: Count = 0
    slots: Slots  # in the whole subtree
    free: Slots  # of them, without a job and without one on its way
    received: Count  # jobs that came to the node since it started
    finished: Count  # jobs that ended in its subtree since then
    accepting: bool = True  # False: draining or leaving; hand it nothing new
    users: UserCounts = {}  # whose jobs are in the subtree's hands, and how many
    model: Name = ""  # what the child serves; empty from older nodes


class Adopt(Control, kw_only=True, tag="adopt"):
    """That node is dead and nobody takes care of its queue: empty it as if it were a child's."""

    node: NodeName


class Leave(Control, kw_only=True, tag="leave"):
    """A child tells its parent that it no longer hangs below it; its queue is empty."""

    node: NodeName


class Refused(Control, kw_only=True, tag="refused"):
    """A parent tells a child that it will not hand it jobs, and why: the child serves another model."""

    parent: NodeName
    reason: Note


class Ancestors(Control, tag="ancestors", kw_only=True):
    """A parent tells a child who is above the parent, nearest first: where to go if the parent dies."""

    names: NodeNames


AnyControl = (
    Cancel
    | Supersede
    | ResumeGrant
    | Drain
    | Resume
    | Attach
    | Adopt
    | Ping
    | Capacity
    | Leave
    | Refused
    | Ancestors
)


class NodeState(Wire, kw_only=True, omit_defaults=False):
    """A node as it describes itself on the events exchange (the `Event` of the design)."""

    name: NodeName
    parent: NodeName | None  # None: a root
    children: NodeNames
    model: Name
    engine: Name  # "none" for a root
    device: Name
    policy: Name
    status: NodeStatus
    slots: Slots
    running: Slots
    held: Held  # accepted from the queue, waiting inside the node
    received: Count
    finished: Count
    tokens: Count  # generated since the start
    host: Name
    pid: Count
    started: Moment
    sent: Moment
    detail: Note = ""  # why it failed, or what it is doing while starting
    waited: Seconds = (
        0.0  # seconds, mean over the latest jobs that had to wait here and then went on
    )
    prompt_tokens: Count = 0  # of the jobs since its engine started, as far as it tells
    reused_tokens: Count = 0  # of them, those that were held already and not read again
    wait_error: Seconds = (
        0.0  # seconds by which the first estimate of their wait was wrong, mean absolute error
    )
    context_length: Count = (
        0  # tokens of prompt and answer together that a job may have; 0: not known
    )
    warning: Note = ""  # what an operator should look at while the node serves all the same


T = TypeVar("T")
_encoder = msgspec.json.Encoder()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Job, Frames, AnyControl, NodeState)
}


def encode(message: Wire) -> bytes:
    """The message as JSON bytes. Half of a surrogate pair, which UTF-8 cannot carry, becomes U+FFFD: text may come
    from anywhere, and one frame that cannot be encoded must not keep back those beside it.
    """
    try:
        return _encoder.encode(message)
    except UnicodeEncodeError:
        return _encoder.encode(_without_surrogates(msgspec.to_builtins(message)))


def encode_for_once(job: Job) -> bytes:
    """The same for a job that is kept: CPython keeps the UTF-8 of a text, once it was needed, as long as the text. So
    copies of the job's texts are encoded, and go with it.
    """
    messages = job.messages
    if messages is not None:
        messages = tuple(
            ChatMessage(role=each.role, content=_copy(each.content)) for each in messages
        )
    prompt = None if job.prompt is None else _copy(job.prompt)
    return encode(msgspec.structs.replace(job, messages=messages, prompt=prompt))


def _copy(text: str) -> str:
    """ASCII text is its own UTF-8, and needs none."""
    return text if text.isascii() else text[:1] + text[1:]


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list | tuple):
        return [_without_surrogates(each) for each in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(each) for key, each in value.items()}
    return value


@overload
def decode(body: bytes, kind: type[T]) -> T: ...
@overload
def decode(body: bytes, kind: UnionType) -> AnyControl: ...
def decode(body: bytes, kind: Any) -> Any:
    """Parses `body` as `kind` (Job, Frames, AnyControl or NodeState).

    Raises DecodeError for bytes that are not JSON, not UTF-8, or lack, mistype or exceed a field.
    """
    try:
        return _decoders[kind].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DecodeError(str(error)) from error
    except RecursionError as error:  # of a field that nobody knows, even
        raise DecodeError("nested too deeply") from error
