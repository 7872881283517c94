"""Running a dead letter's job again: as it was, or with an operator's changes. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from broker.bounds import TokenId
from broker.errors import BadChange
from broker.wire import ChatMessage, Job, Sampling
from topology.names import is_amqp_name

MAX_MESSAGES = 10_000
_SAMPLING_FIELDS = frozenset(Sampling.__struct_fields__)


class Changes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What changes in the new job; None: nothing. `sampling`: some fields of Sampling."""

    model: str | None = None
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    prompt_ids: tuple[TokenId, ...] | None = None
    sampling: dict[str, Any] | None = None


def to_replay(job: Job, request_id: str, now: float) -> Job:
    """The job as a new request, without anything left from its earlier runs but their text.

    The answer goes on after the text that its reader has, so that none of it changes.
    """
    return msgspec.structs.replace(
        job,
        request_id=request_id,
        created=now,
        attempt=1,
        restarted=False,
        trail=(),
        waits=(),
        seconds_left=None,
        deadline=None,
    )


def editable(job: Job) -> dict[str, Any]:
    """The parts of the job that can be changed, for an editor."""
    parts: dict[str, Any] = {"model": job.model}
    if job.pooling is not None:
        return parts
    if job.prompt_ids:
        parts["prompt_ids"] = list(job.prompt_ids)
    elif job.messages is None:
        parts["prompt"] = job.prompt or ""
    else:
        parts["messages"] = list(msgspec.to_builtins(job.messages))
    parts["sampling"] = msgspec.to_builtins(job.sampling)
    return parts


def parse(document: Mapping[str, Any]) -> Changes:
    """Changes from a decoded JSON object. Raises BadChange."""
    try:
        return msgspec.convert(document, Changes)
    except msgspec.ValidationError as error:
        raise BadChange(str(error)) from error


def changed(job: Job, changes: Changes) -> Job:
    """The job with the changes. If it differs, it is answered from the beginning.

    Raises BadChange.
    """
    model = changes.model
    if model is None:
        model = job.model
    if not model or not is_amqp_name(model):
        raise BadChange("model: not a model's name")
    changed_job = msgspec.structs.replace(
        _with_prompt(job, changes),
        model=model,
        sampling=_changed_sampling(job.sampling, changes.sampling or {}),
    )
    if changed_job == job:
        return job
    return msgspec.structs.replace(
        changed_job, delivered="", delivered_ids=(), delivered_tokens=0, delivered_inputs=0
    )


def _with_prompt(job: Job, changes: Changes) -> Job:
    """The job with what the changes name of messages, prompt and its ids. Raises BadChange."""
    given = [changes.messages, changes.prompt, changes.prompt_ids]
    if sum(each is not None for each in given) > 1:
        raise BadChange("prompt: a job has messages or a prompt, not both")
    if job.pooling is not None and any(each is not None for each in given):
        raise BadChange("prompt: a job that embeds or scores texts has none")
    none = msgspec.structs.replace(job, messages=None, prompt=None, prompt_ids=())
    if changes.messages is not None:
        if not 0 < len(changes.messages) <= MAX_MESSAGES:
            raise BadChange(f"messages: give 1 to {MAX_MESSAGES} of them")
        return msgspec.structs.replace(none, messages=changes.messages)
    if changes.prompt is not None:
        return msgspec.structs.replace(none, prompt=changes.prompt)
    if changes.prompt_ids is not None:
        if not changes.prompt_ids:
            raise BadChange("prompt_ids: give at least one token")
        return msgspec.structs.replace(none, prompt_ids=changes.prompt_ids)
    return job


def _changed_sampling(sampling: Sampling, fields: Mapping[str, Any]) -> Sampling:
    """Raises BadChange for an unknown field, or a value out of bounds."""
    for name in fields:
        if name not in _SAMPLING_FIELDS:
            raise BadChange(f"sampling: there is no {name[:60]!r}")
    try:
        # to JSON and back: logit_bias has integers as keys
        document = msgspec.json.encode({**msgspec.to_builtins(sampling), **fields})
        return msgspec.json.decode(document, type=Sampling)
    except (msgspec.ValidationError, TypeError) as error:
        raise BadChange(f"sampling: {error}") from error
