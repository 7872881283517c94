"""/v1/completions: the jobs of one or several prompts, and their answers as one object."""

from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from django.http import HttpResponse
from django.http.response import HttpResponseBase

from api.accounts.auth import AuthRequest
from api.errors import ApiError
from api.http.sse import EventStream
from api.openai.completion_body import Completion
from api.openai.text_choice import TextChoice, Wanted, best, usage
from api.openai.text_stream import TextChunks, events
from api.openai.usage_so_far import UsageSoFar
from api.requests.build import Prompt, as_whole, choices, prompt_job
from api.requests.complete import RunningAnswer, start_jobs
from api.requests.deadline import seconds_left
from api.requests.errors import job_failure
from api.settings import MAX_BODY
from broker.encoding import encode
from broker.wire import Failed, Job, Waiting

MAX_JOBS = 1024
MAX_JOB_BYTES = 8 * MAX_BODY  # of all jobs that one request starts


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt and its jobs."""

    prompt: Prompt
    jobs: list[Job]


async def answer(request: AuthRequest, body: Completion) -> HttpResponseBase:
    """The response to a request. Raises ApiError."""
    asked = [_asked(request, body, prompt) for prompt in body.prompts]
    jobs = [job for each in asked for job in each.jobs]
    _check_size(jobs, len(asked))
    running = await start_jobs(request, jobs, "n" if len(asked) == 1 else "prompt")
    wanted = Wanted(bool(body.echo), body.logprobs, body.prompt_logprobs)
    prompts = _choices(asked, wanted)
    # a request with an Idempotency-Key may be answered by an earlier one's job
    by_id = dict(zip(running.request_ids, [each for row in prompts for each in row], strict=True))
    head = {
        "id": f"cmpl-{running.request_id}",
        "object": "text_completion",
        "created": running.created,
        "model": jobs[0].model,
    }
    if body.tier is not None:
        head["service_tier"] = body.tier
    if body.stream:
        counts: UsageSoFar | None = None
        if body.wants_continuous_usage:
            copies = len(by_id) // len(prompts)
            counts = UsageSoFar({name: at // copies for at, name in enumerate(by_id)})
        chunks = TextChunks(head, prompts, wanted, with_usage=body.wants_usage, usage_so_far=counts)
        source = events(running, chunks, by_id)
        return EventStream(source, running.source, headers=running.headers())
    waited = await _read(running, by_id)
    return HttpResponse(
        msgspec.json.encode({**head, **_whole(prompts, body.n or 1)}),
        content_type="application/json",
        headers=running.headers(waited),
    )


def _asked(request: AuthRequest, body: Completion, prompt: Prompt) -> _Asked:
    sampling = body.sampling()
    alternatives = body.prompt_alternatives
    if body.echo and alternatives is None and not isinstance(prompt, str):
        alternatives = 0  # its tokens come with their text
    first = prompt_job(
        body.model,
        prompt,
        msgspec.structs.replace(sampling, prompt_logprobs=alternatives),
        request.auth,
        seconds_left=seconds_left(request),
        job_class=body.job_class,
        add_special_tokens=body.add_special_tokens,
    )
    jobs = choices(as_whole(first, body.stream), body.copies)
    if not body.stream:  # the first one's are all the others'
        for index, job in enumerate(jobs[1:], 1):
            others = msgspec.structs.replace(job.sampling, prompt_logprobs=None)
            jobs[index] = msgspec.structs.replace(job, sampling=others)
    return _Asked(prompt, jobs)


def _choices(asked: list[_Asked], wanted: Wanted) -> list[list[TextChoice]]:
    """A choice for each job, by prompt."""
    prompts: list[list[TextChoice]] = []
    index = 0
    for each in asked:
        prompts.append([])
        for _ in each.jobs:
            prompts[-1].append(TextChoice(index, each.prompt, wanted))
            index += 1
    return prompts


def _check_size(jobs: list[Job], prompts: int) -> None:
    """Each choice is a job with a whole prompt. Raises ApiError 400 if they are too many."""
    if len(jobs) == 1:
        return
    field = "n" if prompts == 1 else "prompt"
    if len(jobs) > MAX_JOBS:
        message = f"{field}: at most {MAX_JOBS} choices of all prompts together"
        raise ApiError(400, message, field=field, code="invalid_value")
    copies = len(jobs) // prompts
    size = sum(len(encode(job)) for job in jobs[::copies])
    if size * copies > MAX_JOB_BYTES:
        most = MAX_JOB_BYTES // size
        message = f"n: at most {most} choices with a prompt of this length"
        raise ApiError(400, message, field="n", code="invalid_value")


async def _read(running: RunningAnswer, by_id: dict[str, TextChoice]) -> str | None:
    """Reads all choices to their ends; returns why they waited, if they did. Raises ApiError."""
    waited = running.waiting
    async with aclosing(running.source):
        async for frame in running.frames:
            match frame:
                case None:
                    continue
                case Waiting():
                    waited = frame.reason
                case Failed():
                    raise job_failure(frame, "prompt")
                case _:
                    by_id[frame.request_id].take(frame)
    return waited


def _whole(prompts: list[list[TextChoice]], count: int) -> dict[str, Any]:
    told: list[dict[str, Any]] = []
    for row in prompts:
        for choice in row[1:]:
            choice.prompt_entries = row[0].prompt_entries
        for choice in best(row, count):
            told.append(choice.whole(len(told)))
    return {"choices": told, "usage": usage(prompts)}
