"""A prompt's tokens, as a node counts them: the API has no tokenizer.

The job goes down the tree like any other and takes a slot for a moment; nothing is generated.
"""

from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from api.accounts.auth import AuthRequest
from api.context import app
from api.requests.complete import release_body
from api.requests.errors import job_failure
from broker.wire import Delta, Failed, Finished, Job, Sampling, TokenLogprob


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt's tokens; `spelled`, if requested, has the bytes of each."""

    request_id: str
    count: int
    ids: tuple[int, ...]
    spelled: tuple[TokenLogprob, ...]
    text: str


async def count_tokens(request: AuthRequest, job: Job) -> int:
    """How many tokens the prompt of `job` has. Raises ApiError."""
    return (await tokenize(request, job)).count


async def tokenize(request: AuthRequest, job: Job, *, spelled: bool = False) -> Tokens:
    """The tokens of the prompt of `job`, which is not run itself. Raises ApiError."""
    sampling = Sampling(max_tokens=0, prompt_logprobs=0 if spelled else None)
    return await _answer(request, msgspec.structs.replace(job, task="tokenize", sampling=sampling))


async def detokenize(request: AuthRequest, job: Job) -> Tokens:
    """The text of the tokens of `job`. Raises ApiError."""
    sampling = Sampling(max_tokens=0)
    job = msgspec.structs.replace(job, task="detokenize", sampling=sampling)
    return await _answer(request, job)


async def _answer(request: AuthRequest, job: Job) -> Tokens:
    stream = await app().submitter.submit(job)
    release_body(request)
    ids: list[int] = []
    spelled: list[TokenLogprob] = []
    texts: list[str] = []
    async with aclosing(stream):
        async for frame in stream:
            match frame:
                case Delta():
                    ids += frame.ids
                    spelled += frame.prompt_logprobs
                    texts.append(frame.text)
                case Failed():
                    raise job_failure(frame, _prompt_field(job))
                case Finished():
                    count = frame.prompt_tokens
                    return Tokens(job.request_id, count, tuple(ids), tuple(spelled), "".join(texts))
    raise AssertionError("a stream ended without an end frame")


def _prompt_field(job: Job) -> str:
    if job.messages is not None:
        return "messages"
    return "prompt" if job.task == "tokenize" else "tokens"
