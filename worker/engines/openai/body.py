"""What is asked of an OpenAI-compatible server: a job as the body of a request."""

import re
from typing import Any

import msgspec

from broker.wire import Job, Sampling

CHARACTERS_A_TOKEN = 4  # roughly, in English text
_SEEDS = 2**31  # servers keep seeds in 32 bits or 64, and some read -1 as "none"


class Field(msgspec.Struct, frozen=True):
    """A setting of `Sampling` on its way into a body. `always`: sent even if it has its default, as the server's own
    default may be another. `optional`: not OpenAI's, so a server may refuse it.
    """

    name: str
    key: str = ""  # in the body; the same name if empty
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
    Field("top_k", optional=True),
    Field("min_p", optional=True),
    Field("repetition_penalty", optional=True),  # vLLM's, SGLang's, Canopy's
    Field("repetition_penalty", "repeat_penalty", optional=True),  # llama.cpp's
)
_DEFAULTS = Sampling()
_CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}  # vLLM's and SGLang's
_OPTIONAL = frozenset(
    {"stream_options", "max_tokens", "logprobs", "top_logprobs", *_CONTINUE}
    | {field.key or field.name for field in FIELDS if field.optional}
)
_UNKNOWN = re.compile(
    r"unknown|unrecogni[sz]ed|unsupported|unexpected|not supported|not permitted|not allowed|extra|should be a valid",
    re.IGNORECASE,
)


class Plan(msgspec.Struct, frozen=True):
    """One way to get a job's answer, or what is missing of it.

    `prefill`: what the server is to go on from. `again`: text that comes once more and is not told; if `exact`, an
    answer that begins otherwise is another one, else only what agrees is left out. `spent`: tokens of the answer that
    the server will not count, because it is given them.
    """

    prefill: str = ""
    again: str = ""
    exact: bool = False
    spent: int = 0


def plans(job: Job, *, continues: bool) -> list[Plan]:
    """The ways to get the job's answer, best first. `continues`: the server is known to go on from a last message of
    the assistant.

    The same seed makes the same answer on many servers, and whether it did is seen before anything is told. Going on
    from the text is right wherever it is understood, and at once; a server that does not understand it begins anew.
    """
    if not job.delivered:
        return [Plan()]
    again = Plan(again=job.delivered, exact=True)
    # Without the white space at its end, which templates cut off, and after which tokenizers go wrong.
    text = job.delivered.rstrip()
    if not text:
        return [again]
    onward = Plan(prefill=text, again=job.delivered[len(text) :], spent=tokens_delivered(job))
    return [onward, again] if continues else [again, onward]


def body(
    job: Job, model: str, plan: Plan, refused: frozenset[str] = frozenset()
) -> tuple[str, dict[str, Any]]:
    """The path below the server's address and the request's body, without the fields it has `refused`."""
    fields: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    fields |= _settings(job.sampling, plan.spent)
    alternatives = job.sampling.logprobs
    if job.messages is None:
        path = "completions"
        fields["prompt"] = (job.prompt or "") + plan.prefill
        fields.setdefault("max_tokens", None)  # else it is 16 with some
        fields |= {} if alternatives is None else {"logprobs": alternatives}
    else:
        path = "chat/completions"
        turns = [{"role": turn.role, "content": turn.content} for turn in job.messages]
        if plan.prefill:
            turns.append({"role": "assistant", "content": plan.prefill})
            fields |= _CONTINUE
        fields["messages"] = turns
        fields |= {} if alternatives is None else {"logprobs": True, "top_logprobs": alternatives}
    return path, {
        key: value for key, value in fields.items() if key not in refused or not _may_go(key, value)
    }


def unknown_fields(message: str, sent: dict[str, Any]) -> frozenset[str]:
    """Which of the optional fields that were sent a server's complaint calls unknown."""
    if not _UNKNOWN.search(message):
        return frozenset()
    named = set(re.findall(r"\w+", message))
    return frozenset(key for key, value in sent.items() if key in named and _may_go(key, value))


def tokens_delivered(job: Job) -> int:
    """How many tokens the reader of a continued job has: as told, else an estimate."""
    return len(job.delivered_ids) or _estimate(len(job.delivered))


def prompt_tokens(job: Job) -> int:
    """An estimate, until the server tells. At least 1."""
    return max(
        1, _estimate(len(job.prompt or "") + sum(len(turn.content) for turn in job.messages or ()))
    )


def _settings(sampling: Sampling, spent: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in FIELDS:
        value = getattr(sampling, field.name)
        if field.always or value != getattr(_DEFAULTS, field.name):
            found[field.key or field.name] = value
    if "seed" in found:
        found["seed"] %= _SEEDS
    if "max_tokens" in found:
        found["max_tokens"] = max(1, found["max_tokens"] - spent)
    return found


def _may_go(key: str, value: object) -> bool:
    """Whether a request means the same to a server that does not know that field."""
    return key in _OPTIONAL and not (key == "max_tokens" and value is not None)


def _estimate(characters: int) -> int:
    return -(-characters // CHARACTERS_A_TOKEN)
