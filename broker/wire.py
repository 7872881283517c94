"""The messages that cross the broker, as frozen structs; encoding.py has `encode` and `decode`.

Times are Unix seconds. `tests/golden/` has one JSON file for each message.
"""

from typing import Annotated, Literal, TypedDict

import msgspec

from broker.bounds import (
    Count,
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
    Traceparent,
    Trail,
    Unit,
    UserCounts,
    Waits,
)

Role = Literal["system", "user", "assistant", "tool"]
ToolChoice = Literal["none", "auto", "required"]
Task = Literal["generate", "embed", "score", "tokenize", "detokenize"]
GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark"]
MAX_TOOLS = 1024
MAX_TEMPLATE_ARGUMENTS = 8192  # characters
MAX_PROMPT_IDS = 10_000_000
MAX_INPUTS = 2048  # of a job that computes vectors or scores; OpenAI's bound
MAX_DIMENSIONS = 2**20  # of a vector
JobClass = Literal["interactive", "batch"]
PoolingMode = Literal["", "cls", "mean", "last", "max"]

FinishReason = Literal["stop", "length", "cancelled"]
MAX_BIASES = 1024  # tokens
MAX_ATTEMPTS = 3  # a job whose runs were lost so often is given up
FailureCode = Literal[
    "invalid",
    "too_long",
    "engine",
    "expired",
    "no_node",
    "given_up",
    "internal",
    "cancelled",
    "user_limit",
]


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all wire structs. (msgspec does not inherit `kw_only`, so each repeats it.)"""


class ToolCall(Wire, kw_only=True):
    """A call of a tool by an assistant. `arguments`: JSON text as the model wrote it."""

    id: Name
    name: Name
    arguments: str


class Tool(Wire, kw_only=True):
    """A function that the model may call. `parameters`: JSON schema of its arguments, as text."""

    name: Name
    description: str = ""
    parameters: str = ""  # empty: takes none
    strict: bool = False


class ChatMessage(Wire, kw_only=True):
    """One turn of a dialogue. A `tool` turn is the result of the call `tool_call_id`."""

    role: Role
    content: str
    name: Name = ""  # of the function, in a tool turn
    tool_calls: Annotated[tuple[ToolCall, ...], msgspec.Meta(max_length=MAX_TOOLS)] = ()
    tool_call_id: Name = ""
    reasoning: str = ""  # of an assistant's turn


class Grammar(Wire, kw_only=True):
    """What an answer must look like.

    `source`: by kind, a JSON schema, nothing, a regular expression (Rust's syntax), a JSON list of
    texts, or a grammar in llguidance's Lark syntax.
    """

    kind: GrammarKind
    source: str = ""


RepetitionPenalty = Annotated[float, msgspec.Meta(gt=0, le=1000)]
LogitBias = Annotated[dict[Count, Penalty], msgspec.Meta(max_length=MAX_BIASES)]
TopLogprobs = Annotated[int, msgspec.Meta(ge=0, le=1000)]
SamplingDefault = Literal[
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
]  # fields of Sampling that a model may have its own defaults for


class Sampling(Wire, kw_only=True):
    """How the next token is chosen and when to stop. Validated by the API, trusted by engines."""

    max_tokens: Count | None = None  # None: the engine's own limit
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 1.0  # 0: greedy
    top_p: Unit = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=2**53)] = 0  # 0: off
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    reproducible: bool = False  # the user set the seed: batching must not change the text
    stop: Annotated[tuple[str, ...], msgspec.Meta(max_length=1024)] = ()
    min_p: Unit = 0.0  # of the likeliest token's probability; 0: off
    repetition_penalty: RepetitionPenalty = 1.0  # of tokens in the prompt or the answer; 1: off
    frequency_penalty: Penalty = 0.0  # for each occurrence in the answer
    presence_penalty: Penalty = 0.0  # once, for a token in the answer
    logit_bias: LogitBias = {}  # by token id
    # with each token, its logprob and those of so many of the likeliest tokens in its place
    logprobs: TopLogprobs | None = None
    prompt_logprobs: TopLogprobs | None = None  # the same of the prompt's tokens, from the second
    grammar: Grammar | None = None  # that the whole answer keeps
    min_tokens: Count = 0  # no end before so many
    ignore_eos: bool = False  # go on to max_tokens
    stop_token_ids: Annotated[tuple[TokenId, ...], msgspec.Meta(max_length=1024)] = ()
    skip_special_tokens: bool = True  # False: control tokens in the answer are shown as text
    include_stop: bool = False  # the text ends with the stop string that ended it
    # Fields that the request left out, so that the model's defaults replace them. Inside the API
    # and its stored jobs; none in a job that is on its way.
    defaulted: Annotated[tuple[SamplingDefault, ...], msgspec.Meta(max_length=16)] = ()


PromptIds = Annotated[tuple[TokenId, ...], msgspec.Meta(max_length=MAX_PROMPT_IDS)]


class Pooling(Wire, kw_only=True):
    """Inputs that become one vector each, or one score each.

    An input is a text or its token ids. A score says how well an input answers its query: the one
    query, or that of the same index.
    """

    inputs: Annotated[tuple[str | PromptIds, ...], msgspec.Meta(max_length=MAX_INPUTS)]
    queries: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_INPUTS)] = ()
    prompt_name: Name = ""  # of a text that the model's files put before each input
    prompt: str = ""  # such a text itself
    mode: PoolingMode = ""  # empty: as the model's files say
    normalize: bool | None = None  # to unit length; None: as the model's files say
    dimensions: Annotated[int, msgspec.Meta(ge=0, le=MAX_DIMENSIONS)] = 0  # the first ones; 0: all
    # Tokens to keep of an input, -1 for as many as the model reads; None: a longer one is refused.
    truncate: Annotated[int, msgspec.Meta(ge=-1, le=2**53)] | None = None


class Job(Wire, kw_only=True):
    """One request on its way down the tree.

    Exactly one of `messages`, `prompt`, `prompt_ids` and `pooling` is set. `task`: what becomes of
    it; the answer to `tokenize` is a Delta's `ids`, without text, to `detokenize` its text, and to
    `embed` and `score` Vectors.
    """

    request_id: Name
    model: Name
    reply_to: Name  # the reply queue of the API process
    created: Moment
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    prompt_ids: PromptIds = ()
    pooling: Pooling | None = None  # with the tasks "embed" and "score"
    task: Task = "generate"
    add_special_tokens: bool | None = None  # as <bos>; None: to a prompt, not to a template's text
    tools: Annotated[tuple[Tool, ...], msgspec.Meta(max_length=MAX_TOOLS)] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: Name = ""  # with "required": this one
    parallel_tool_calls: bool = True
    continue_final_message: bool = False  # the last turn, an assistant's, is to be continued
    add_generation_prompt: bool = True  # False: nothing in the prompt says that an answer comes
    # For the chat template, a JSON object.
    template_arguments: Annotated[str, msgspec.Meta(max_length=MAX_TEMPLATE_ARGUMENTS)] = ""
    reasoning_effort: Name = ""  # for the chat template: "none", "low", ...; empty: its default
    sampling: Sampling = Sampling()
    user: Name = ""
    key: Name = ""  # the public part of the API key that asked, if one did
    job_class: JobClass = "interactive"  # interactive jobs come before batch jobs
    work: Positive = 1.0  # tokens charged to its user for fairness; see api.requests.accounting
    expected: Positive | None = None  # tokens of this job; the rest of `work` is owed for others
    most_running: Count | None = None  # jobs of its user, by the user's plan; None: any number
    most_waiting: Count | None = None
    share: Positive = 1.0  # of the tree that its user is entitled to, relative to 1
    attempt: Count = 1  # of its next run; for a restarted job the ResumeGrant says
    restarted: bool = False  # a node gave it back or died: send ResumeRequest before running it
    seconds_left: Seconds | None = None  # until it expires, from when this copy was published
    deadline: Moment | None = None  # the same, from former API processes; clocks must agree
    # Its reader waits for the whole answer: its text is flushed so far apart. 0: as it comes.
    flush_seconds: Seconds = 0.0
    truncate: bool = False  # if `messages` are too long, leave out the oldest, else refuse the job
    trail: Trail = ()  # nodes that have handled it, root first
    waits: Waits = ()  # seconds that it waited at each of them; shorter if some did not tell
    delivered: str = ""  # text that the reader of a restarted job already has
    delivered_ids: tuple[TokenId, ...] = ()  # its tokens, if the engine sent them
    delivered_tokens: Count = 0  # how many it stands for; 0: not known
    delivered_prompt_logprobs: Count = 0  # of how many of the prompt's tokens that reader has them
    delivered_inputs: Count = 0  # of `pooling`: so many results its reader already has
    traceparent: Traceparent = ""  # the span that this copy follows from; see broker.tracing
    # What joined nodes' frames about it must carry; see broker.reply_tokens. Empty from former
    # API processes.
    reply_token: Name = ""
    # What a parent has signed for itself before it gave this copy to a joined node; see
    # worker.given_jobs.
    signed_accounting: Annotated[str, msgspec.Meta(max_length=8192)] = ""


NO_RUN = -1


class Frame(Wire, kw_only=True, tag_field="kind"):
    """Base of what a node sends to the reader of one request.

    The frames of a run are numbered from 0 (`seq`) and taken once, in order, while its `attempt` is
    the newest. Waiting, ResumeRequest and the end of a job that was not running have no number
    (NO_RUN) and count whatever the attempt.
    """

    request_id: Name
    attempt: Count = 1
    seq: Annotated[int, msgspec.Meta(ge=NO_RUN, le=2**53)] = 0
    token: Name = ""  # the job's reply_token; see broker.reply_tokens


class FrameNumber(TypedDict):
    """A frame's identity, for `Start(**number, ...)`."""

    request_id: str
    attempt: int
    seq: int


class Waiting(Frame, kw_only=True, tag="waiting"):
    """The job is not running yet. `position`: in the queue, from 1; `seconds`: estimate to start.

    None where nothing orders the jobs, or nothing is known. `code`: the kind of reason, such as
    "busy", "no_node", "paused" or "user_limit"; empty from nodes of the former release. `slots`:
    how many are taken, of the tree or of those that one user may have.
    """

    node: Name
    reason: str
    code: Name = ""
    slots: Count | None = None
    position: Count | None = None
    seconds: Seconds | None = None


class ResumeRequest(Frame, kw_only=True, tag="asking"):
    """A restarted job has a slot; its node asks where to continue.

    The answer is ResumeGrant, or Cancel. `number` is repeated in the answer.
    """

    node: NodeName
    incarnation: Name = msgspec.field(name="boot")
    number: Count


class Start(Frame, kw_only=True, tag="start"):
    """A run begins. `trail`: the job's way, root first, this node last; `waits`: see Job."""

    node: Name
    incarnation: Name = msgspec.field(default="", name="boot")
    trail: Trail = ()
    waits: Waits = ()
    # How the text marks calls of tools and reasoning; see api/requests/parts. Empty: it has none.
    tool_format: Name = ""
    reasoning_format: Name = ""


class Interrupted(Frame, kw_only=True, tag="interrupted"):
    """The run ended early; the job goes on elsewhere. `fault`: this counts against the job."""

    reason: str
    fault: bool = False


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """How likely a token of the answer, or of the prompt, was.

    Tokens are bytes (base64 in JSON), as a token may be part of a character. Logprobs are natural
    logarithms of the model's own distribution, at least LEAST_LOGPROB.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()  # the likeliest in its place, best first
    ids: tuple[TokenId, ...] = ()  # of the token, then of those in `top`; none if unknown


LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON does not have


class Delta(Frame, kw_only=True, tag="delta"):
    """New text.

    `tokens`: how many tokens it stands for. `ids`: which ones, so that another node can continue
    exactly. `logprobs`: of the tokens visible in the text, if requested and the engine has them.
    """

    text: str
    tokens: Count = 1
    ids: tuple[TokenId, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_tokens: Count = 0  # of the prompt: told with a run's first text; 0: told already
    # If requested, of all tokens of the prompt, before any text; of the first token 0.
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


class Vectors(Frame, kw_only=True, tag="vectors"):
    """The next results of a `pooling` job, in the order of its inputs.

    Each is a vector of little-endian float32, or one such number, the score (base64 in JSON).
    """

    rows: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_INPUTS)]


class Finished(Frame, kw_only=True, tag="finished"):
    """The answer is complete."""

    reason: FinishReason
    prompt_tokens: Count = 0
    cached_tokens: Count = 0  # of the prompt, found in the prefix cache; 0: none, or unknown
    completion_tokens: Count = 0
    omitted_messages: Count = 0  # oldest turns left out of the prompt; see Job.truncate


class Failed(Frame, kw_only=True, tag="failed"):
    """The job ended without an answer. `retryable`: the same request may succeed later."""

    code: FailureCode
    message: str
    retryable: bool = False


AnyFrame = Waiting | ResumeRequest | Start | Delta | Vectors | Interrupted | Finished | Failed


class Frames(Wire, kw_only=True):
    """A batch of frames for one API process."""

    frames: tuple[AnyFrame, ...]


class Control(Wire, kw_only=True, tag_field="kind"):
    """Base of messages to a node's inbox."""


class Cancel(Control, kw_only=True, tag="cancel"):
    """Nobody wants this answer any more; with `before`, nobody reads attempts below that."""

    request_id: Name
    before: Count | None = None
    user: Name = ""  # if given: only if the job is this user's
    token: Name = ""  # if given: only copies with this reply_token, which is not genuine


class Supersede(Control, kw_only=True, tag="supersede"):
    """A newer attempt goes on: runs of older ones end. Copies that must request first may stay."""

    request_id: Name
    attempt: Count


class ResumeGrant(Control, kw_only=True, tag="continue"):
    """The reader's answer to ResumeRequest: continue after `delivered`, as this attempt.

    `faults`: a line for each lost run that counts against the job.
    """

    request_id: Name
    number: Count
    attempt: Count
    delivered: str = ""
    delivered_ids: tuple[TokenId, ...] = ()
    delivered_tokens: Count = 0
    delivered_prompt_logprobs: Count = 0
    delivered_inputs: Count = 0
    faults: tuple[str, ...] = ()


class Drain(Control, kw_only=True, tag="drain"):
    """Finish what runs, accept nothing new, stay registered."""


class Resume(Control, kw_only=True, tag="resume"):
    """Accept jobs again."""


class Restart(Control, kw_only=True, tag="restart"):
    """Leave as on SIGTERM, then begin anew in the same process, under the same name."""


class Stop(Control, kw_only=True, tag="stop"):
    """Leave as on SIGTERM and end for good: whoever started the process is not to start it again.

    Its children stay below its parent.
    """


class Attach(Control, kw_only=True, tag="attach"):
    """Hang below another parent: for good, or until the home parent is back."""

    parent: NodeName
    for_good: bool = True


class Ping(Control, kw_only=True, tag="ping"):
    """Publish your state now."""


class Capacity(Control, kw_only=True, tag="capacity"):
    """A child's absolute counters, sent to its parent on changes and every few seconds.

    `number` grows within one `incarnation`, so that late and repeated messages are recognised.
    """

    node: NodeName
    incarnation: Name = msgspec.field(default="", name="boot")
    number: Count = 0
    slots: Slots  # in the whole subtree
    free: Slots  # without a job, or one in transit
    received: Count  # jobs that arrived at the node since it started
    finished: Count  # jobs that ended in its subtree since then
    accepting: bool = True  # False: draining or leaving; send it nothing new
    users: UserCounts = {}  # jobs in the subtree, by user
    model: Name = ""  # what the child serves; empty from older nodes
    engine: Name = ""  # with which; empty from older nodes


class Adopt(Control, kw_only=True, tag="adopt"):
    """That node is dead and nobody consumes its queue: empty it like a dead child's."""

    node: NodeName


class RemoveGone(Control, kw_only=True, tag="remove_gone"):
    """A tree has ended: delete what the broker keeps of these nodes, in this order.

    Sent to any node of another tree: the API's user may not delete nodes' queues.
    """

    nodes: NodeNames


class Leave(Control, kw_only=True, tag="leave"):
    """A child no longer hangs below this parent; its queue is empty."""

    node: NodeName


class Refused(Control, kw_only=True, tag="refused"):
    """The parent sends this child no jobs, as it serves another model."""

    parent: NodeName
    reason: Note


class Ancestors(Control, tag="ancestors", kw_only=True):
    """The parent's ancestors, nearest first: where the child goes if the parent dies."""

    names: NodeNames


AnyControl = (
    Cancel
    | Supersede
    | ResumeGrant
    | Drain
    | Resume
    | Restart
    | Stop
    | Attach
    | Adopt
    | RemoveGone
    | Ping
    | Capacity
    | Leave
    | Refused
    | Ancestors
)
