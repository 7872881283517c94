"""/v1/: the usage so far in each chunk of a stream."""

from typing import Any

import httpx
import msgspec
import pytest

from broker.wire import AnyFrame, Delta, Job
from tests.unit.api_site import FakeClient, echo
from tests.unit.openai_site import CHAT, payloads

OPTIONS = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
TEXT = {"model": "tiny", "prompt": "one two three"}


def told_at_once(job: Job) -> list[AnyFrame]:
    """A node that tells the prompt's tokens with the first text."""
    start, first, *rest = echo(job)
    assert isinstance(first, Delta)
    return [start, msgspec.structs.replace(first, prompt_tokens=3), *rest]


def counts(text: str) -> list[tuple[int, int]]:
    found = []
    for chunk in payloads(text):
        usage = chunk["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        found.append((usage["prompt_tokens"], usage["completion_tokens"]))
    return found


@pytest.mark.parametrize(
    ("path", "body", "first"),
    [("/v1/chat/completions", CHAT, [(0, 0)]), ("/v1/completions", TEXT, [])],
)
async def test_each_chunk_tells_the_usage_so_far(
    program: httpx.AsyncClient,
    fake: FakeClient,
    path: str,
    body: dict[str, Any],
    first: list[tuple[int, int]],
) -> None:
    fake.script = told_at_once
    answer = await program.post(path, json={**body, **OPTIONS})
    # all text at once, as it was there; the end, and the usage chunk
    assert counts(answer.text) == [*first, (3, 3), (3, 3), (3, 3)]


async def test_a_prompt_counts_once_and_several_each(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = told_at_once
    choices = await program.post("/v1/chat/completions", json={**CHAT, **OPTIONS, "n": 2})
    assert counts(choices.text)[-1] == (3, 6)
    assert counts(choices.text)[-2] == (3, 6)
    prompts = {**TEXT, **OPTIONS, "prompt": ["a", "b c"], "n": 2}
    answer = await program.post("/v1/completions", json=prompts)
    assert counts(answer.text)[-2] == counts(answer.text)[-1] == (6, 6)


async def test_a_node_of_the_former_release_tells_the_prompt_at_the_end(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    answer = await program.post("/v1/chat/completions", json={**CHAT, **OPTIONS})
    assert counts(answer.text) == [(0, 0), (0, 3), (3, 3), (3, 3)]


async def test_it_wants_the_usage_at_the_end(program: httpx.AsyncClient, fake: FakeClient) -> None:
    options = {"stream": True, "stream_options": {"continuous_usage_stats": True}}
    answer = await program.post("/v1/chat/completions", json={**CHAT, **options})
    assert all("usage" not in chunk for chunk in payloads(answer.text))
