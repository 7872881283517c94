"""A job as the body of a request to an OpenAI-compatible server."""

import re
from typing import Any

import msgspec

from broker.wire import ChatMessage, Grammar, Job, Sampling
from worker.engines.base import InvalidRequest
from worker.engines.openai import tools

CHARACTERS_PER_TOKEN = 4  # roughly, in English text
_SEEDS = 2**31  # some servers keep seeds in 32 bits, and some read -1 as "none"


class Field(msgspec.Struct, frozen=True):
    """How a setting of `Sampling` goes into a body.

    `always`: sent even at its default, as the server's own default may differ. `optional`: not
    OpenAI's, so a server may refuse it.
    """

    name: str
    key: str = ""  # in the body; `name` if empty
    always: bool = False
    optional: bool = False


# A new setting is a line here.
FIELDS = (
    Field("temperature", always=True),
    Field("top_p", always=True),
    Field("max_tokens"),
    Field("stop"),
    Field("seed"),
    Field("frequency_penalty"),
    Field("presence_penalty"),
    Field("logit_bias"),
    Field("min_tokens"),  # vLLM's, SGLang's, Canopy's, as the two below
    Field("ignore_eos"),
    Field("stop_token_ids"),
    Field("top_k", optional=True),
    Field("min_p", optional=True),
    Field("skip_special_tokens", optional=True),
    Field("include_stop", "include_stop_str_in_output", optional=True),
    Field("repetition_penalty", optional=True),  # vLLM's, SGLang's, Canopy's
    Field("repetition_penalty", "repeat_penalty", optional=True),  # llama.cpp's
)
_DEFAULTS = Sampling()
_VLLM = {"regex": "regex", "choice": "choice", "lark": "grammar"}
# By their own names for themselves: servers with vLLM's fields, and those that continue a last
# message of the assistant.
_STRUCTURED_OUTPUTS = {"vllm": _VLLM, "canopy": _VLLM}
CONTINUES = frozenset({"vllm", "sglang", "llamacpp", "canopy"})
# Makes vLLM and SGLang continue the last message.
_CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
_OPTIONAL = frozenset(
    {"stream_options", "max_tokens", "logprobs", "top_logprobs", "reasoning_effort", *_CONTINUE}
    | {field.key or field.name for field in FIELDS if field.optional}
)
_UNKNOWN = re.compile(
    r"unknown|unrecogni[sz]ed|unsupported|unexpected|not supported|not permitted|not allowed"
    r"|extra|should be a valid",
    re.IGNORECASE,
)


class Plan(msgspec.Struct, frozen=True):
    """One way to get a job's answer, or what is missing of it.

    `prefill`: the text that the server continues. `repeated`: text that it sends once more and the
    reader has; with `exact`, an answer that does not begin with it is a different one, otherwise
    only their common beginning is dropped. `spent`: tokens of the answer that the server does not
    count, because it was given them.
    """

    prefill: str = ""
    repeated: str = ""
    exact: bool = False
    spent: int = 0


def plans(job: Job, *, continues: bool) -> list[Plan]:
    """The ways to get the job's answer, best first.

    `continues`: the server is known to continue a last message of the assistant. That is right at
    once wherever it is understood; a server that does not understand it begins a new answer. The
    same seed repeats the answer on many servers, and whether it did shows before anything is sent.
    """
    if not job.delivered:
        return [Plan()]
    repeat = Plan(repeated=job.delivered, exact=True)
    if not _may_go_on(job):
        return [repeat]
    # Templates cut off white space at the end, and tokenizers go wrong after it.
    text = job.delivered.rstrip()
    if not text:
        return [repeat]
    white_space = job.delivered[len(text) :]
    continued = Plan(prefill=text, repeated=white_space, spent=tokens_delivered(job))
    if continues:
        return [continued, repeat]
    return [repeat, continued]


def _may_go_on(job: Job) -> bool:
    """Whether the delivered text may be put into a prompt for the rest of the answer."""
    if job.prompt_ids:  # nothing can be put behind tokens
        return False
    if job.sampling.grammar is not None:  # of which a server would begin another instance
        return False
    return not (job.tools and tools.BEGIN in job.delivered)  # which it tells in another way


def body(
    job: Job, model: str, plan: Plan, refused: frozenset[str] = frozenset(), owner: str = ""
) -> tuple[str, dict[str, Any]]:
    """The path below the server's address, and the body without the fields it has `refused`.

    `owner`: what the server calls itself. Raises InvalidRequest for what it has no field for.
    """
    fields: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    fields |= _settings(job.sampling, plan.spent)
    if job.sampling.grammar is not None:
        fields |= _grammar_fields(job.sampling.grammar, owner)
    if job.messages is None:
        path = "completions"
        fields |= _completion_fields(job, plan)
        fields.setdefault("max_tokens", None)  # some servers' default is 16
    else:
        path = "chat/completions"
        fields |= _chat_fields(job, job.messages, plan, owner)
    for key in refused & fields.keys():
        if _is_optional(key, fields[key]):
            del fields[key]
    return path, fields


def _completion_fields(job: Job, plan: Plan) -> dict[str, Any]:
    fields: dict[str, Any] = {"prompt": (job.prompt or "") + plan.prefill}
    if job.prompt_ids:
        fields["prompt"] = list(job.prompt_ids)
    if job.sampling.logprobs is not None:
        fields["logprobs"] = job.sampling.logprobs
    return fields


def _chat_fields(
    job: Job, messages: tuple[ChatMessage, ...], plan: Plan, owner: str
) -> dict[str, Any]:
    turns = [tools.turn(message) for message in messages]
    fields: dict[str, Any] = {"messages": turns, **_template_fields(job), **tools.fields(job)}
    if job.continue_final_message:
        if owner not in CONTINUES:
            raise InvalidRequest(
                "continue_final_message: the server behind this node is not known to continue a "
                "message; leave out the last turn of the assistant"
            )
        turns[-1]["content"] = (turns[-1]["content"] or "") + plan.prefill
        fields |= _CONTINUE
    elif plan.prefill:
        turns.append({"role": "assistant", "content": plan.prefill})
        fields |= _CONTINUE
    if job.sampling.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": job.sampling.logprobs}
    return fields


def _template_fields(job: Job) -> dict[str, Any]:
    """What the chat template is told; a server that does not reason need not know the effort."""
    fields: dict[str, Any] = {}
    if not job.add_generation_prompt:
        fields["add_generation_prompt"] = False
    if job.template_arguments:
        fields["chat_template_kwargs"] = _json(job.template_arguments)
    if job.reasoning_effort:
        fields["reasoning_effort"] = job.reasoning_effort
    return fields


def _grammar_fields(grammar: Grammar, owner: str) -> dict[str, Any]:
    """JSON in OpenAI's own way, the rest in vLLM's."""
    if grammar.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if grammar.kind == "json_schema":
        schema = {"name": "answer", "schema": _json(grammar.source), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if owner not in _STRUCTURED_OUTPUTS:
        raise InvalidRequest(
            f"the server behind this node has no way to keep a {grammar.kind}; "
            "it may keep a JSON schema"
        )
    value: Any = grammar.source
    if grammar.kind == "choice":
        value = _json(grammar.source)
    return {"structured_outputs": {_STRUCTURED_OUTPUTS[owner][grammar.kind]: value}}


def _json(source: str) -> Any:
    try:
        return msgspec.json.decode(source)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"what a server is to be told is not valid JSON: {error}") from error


def unknown_fields(message: str, sent: dict[str, Any]) -> frozenset[str]:
    """Which of the optional fields in `sent` a server's complaint calls unknown."""
    if not _UNKNOWN.search(message):
        return frozenset()
    unknown: set[str] = set()
    for word in re.findall(r"\w+", message):
        if word in sent and _is_optional(word, sent[word]):
            unknown.add(word)
    return frozenset(unknown)


def tokens_delivered(job: Job) -> int:
    """How many tokens the reader of a continued job has; an estimate where nobody counted."""
    return job.delivered_tokens or len(job.delivered_ids) or _estimate_tokens(len(job.delivered))


def prompt_tokens(job: Job) -> int:
    """An estimate until the server counts them; at least 1."""
    characters = len(job.prompt or "")
    for message in job.messages or ():
        characters += len(message.content)
    return max(1, len(job.prompt_ids) + _estimate_tokens(characters))


def _settings(sampling: Sampling, spent: int) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for field in FIELDS:
        value = getattr(sampling, field.name)
        if field.always or value != getattr(_DEFAULTS, field.name):
            settings[field.key or field.name] = value
    if "seed" in settings:
        settings["seed"] %= _SEEDS
    if "max_tokens" in settings:
        settings["max_tokens"] = max(1, settings["max_tokens"] - spent)
    if "min_tokens" in settings:
        settings["min_tokens"] = max(0, settings["min_tokens"] - spent)
    return settings


def _is_optional(key: str, value: object) -> bool:
    """Whether a request without the field means the same to a server that does not know it."""
    return key in _OPTIONAL and not (key == "max_tokens" and value is not None)


def _estimate_tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)
