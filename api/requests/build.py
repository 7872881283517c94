"""Wire jobs from requests."""

import time
import uuid
from typing import get_args

import msgspec

from api.accounts.models import User
from broker.wire import ChatMessage, Job, JobClass, Sampling, SamplingDefault

Prompt = str | tuple[int, ...]  # a text, or tokens
SAMPLING_DEFAULTS: tuple[SamplingDefault, ...] = get_args(SamplingDefault)
# Defaults of the chat page and /arranca/, where the model's card says nothing; the
# OpenAI-compatible endpoints use the model's own distribution then.
TOP_P = "how much of the probability is drawn from; 0: the likeliest token alone"
FLUSH_SECONDS = 0.25  # between flushes of an answer that is read as a whole
_LEAST_TOP_P = 1e-9
CONVERSATION = Sampling(temperature=0.7, top_p=0.95, defaulted=SAMPLING_DEFAULTS)


def new_request_id() -> str:
    """A fresh request id."""
    return uuid.uuid4().hex


def nucleus(top_p: float) -> float:
    """`top_p` as nodes take it, which must be above 0; the likeliest token is always kept."""
    return max(top_p, _LEAST_TOP_P)


def chat_job(
    model: str,
    messages: list[ChatMessage],
    sampling: Sampling,
    user: User,
    *,
    seconds_left: float | None = None,
    job_class: JobClass = "interactive",
    truncate: bool = False,
    add_special_tokens: bool | None = None,
) -> Job:
    """A job that continues a dialogue. `truncate`: the node may drop the oldest turns to fit."""
    return Job(
        request_id=new_request_id(),
        model=model,
        reply_to="",  # filled in by the broker client
        created=time.time(),
        messages=tuple(messages),
        truncate=truncate,
        add_special_tokens=add_special_tokens,
        sampling=sampling,
        user=user.get_username(),
        job_class=job_class,
        share=user.share,
        seconds_left=seconds_left,
    )


def prompt_job(
    model: str,
    prompt: Prompt,
    sampling: Sampling,
    user: User,
    *,
    seconds_left: float | None = None,
    job_class: JobClass = "interactive",
    add_special_tokens: bool | None = None,
) -> Job:
    """A job that continues a text, or tokens."""
    return Job(
        request_id=new_request_id(),
        model=model,
        reply_to="",  # filled in by the broker client
        created=time.time(),
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_ids=() if isinstance(prompt, str) else prompt,
        add_special_tokens=add_special_tokens,
        sampling=sampling,
        user=user.get_username(),
        job_class=job_class,
        share=user.share,
        seconds_left=seconds_left,
    )


def as_whole(job: Job, stream: object) -> Job:
    """The job as a request without `stream` wants it: nobody sees its text grow."""
    return job if stream else msgspec.structs.replace(job, flush_seconds=FLUSH_SECONDS)


def choices(job: Job, count: int) -> list[Job]:
    """The job and `count` - 1 copies of it; a seed is increased by one from copy to copy."""
    jobs = [job]
    for number in range(1, count):
        sampling = _with_next_seed(job.sampling, number)
        jobs.append(msgspec.structs.replace(job, request_id=new_request_id(), sampling=sampling))
    return jobs


def _with_next_seed(sampling: Sampling, number: int) -> Sampling:
    if sampling.seed is None:
        return sampling
    seed = (sampling.seed + number + 2**63) % 2**64 - 2**63  # wraps around in 64 bits
    return msgspec.structs.replace(sampling, seed=seed)
