"""/v1/completions: several prompts, token ids, the prompt echoed with its logprobs, the best of."""

from typing import Any

import httpx
import pytest

from broker.wire import AnyFrame, Delta, Finished, Job, TokenLogprob
from tests.unit.api_site import FakeClient
from tests.unit.openai_site import payloads

WORDS = {4: b"<s>", 5: b"one", 6: b" two"}


def scored(job: Job) -> list[AnyFrame]:
    """A node that knows how likely a prompt of `one two` is, and continues it by `!`."""
    frames: list[AnyFrame] = []
    top = job.sampling.prompt_logprobs
    if top is not None:
        ids = job.prompt_ids or (4, 5, 6)
        for number in ids:  # a frame each, as if they were many
            likeliest = ((b"x", -0.5), (b"y", -1.5))[:top]
            entry = TokenLogprob(WORDS[number], -2.0, likeliest, (number, 7, 8)[: top + 1])
            frames.append(
                Delta(request_id=job.request_id, text="", tokens=0, prompt_logprobs=(entry,))
            )
    if job.sampling.max_tokens != 0:
        logprobs = (TokenLogprob(b"!", -0.25, ((b"!", -0.25),)),)
        told = logprobs if job.sampling.logprobs is not None else ()
        frames.append(Delta(request_id=job.request_id, text="!", logprobs=told))
    count = 0 if job.sampling.max_tokens == 0 else 1
    end = Finished(
        request_id=job.request_id, reason="length", prompt_tokens=3, completion_tokens=count
    )
    return [*frames, end]


@pytest.fixture
def node(fake: FakeClient) -> FakeClient:
    fake.script = scored
    return fake


async def completed(program: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await program.post("/v1/completions", json={"model": "tiny", **fields})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("a", [("a", ())]),
        (["a"], [("a", ())]),
        (["a", "b"], [("a", ()), ("b", ())]),
        ([5, 6], [(None, (5, 6))]),
        ([[5], [6, 5]], [(None, (5,)), (None, (6, 5))]),
    ],
)
async def test_each_prompt_is_a_job(
    program: httpx.AsyncClient, node: FakeClient, prompt: Any, sent: Any
) -> None:
    document = await completed(program, prompt=prompt, n=2, seed=3)
    assert [(job.prompt, job.prompt_ids) for job in node.jobs] == [
        each for each in sent for _ in range(2)
    ]
    assert [job.sampling.seed for job in node.jobs] == [3, 4] * len(sent)
    assert [choice["index"] for choice in document["choices"]] == list(range(2 * len(sent)))
    assert document["usage"]["prompt_tokens"] == 3 * len(sent)
    assert document["usage"]["completion_tokens"] == 2 * len(sent)
    assert document["id"] == f"cmpl-{node.jobs[0].request_id}"


@pytest.mark.parametrize(
    "prompt", [[], [[]], ["a", 5], [5, "a"], [-1], [2**32], [True], [1.5], 5, None]
)
async def test_what_is_no_prompt(program: httpx.AsyncClient, node: FakeClient, prompt: Any) -> None:
    answer = await program.post("/v1/completions", json={"model": "tiny", "prompt": prompt})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
    assert node.jobs == []


async def test_more_prompts_than_one_request_may_have(
    program: httpx.AsyncClient, node: FakeClient
) -> None:
    for fields in ({"prompt": ["a"] * 1025}, {"prompt": ["a"] * 513, "n": 2}):
        answer = await program.post("/v1/completions", json={"model": "tiny", **fields})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
    assert node.jobs == []


async def test_a_prompt_scored_and_nothing_made(
    program: httpx.AsyncClient, node: FakeClient
) -> None:
    """What lm-eval sends, but for its one token."""
    document = await completed(program, prompt=[4, 5, 6], echo=True, logprobs=1, max_tokens=0)
    [choice] = document["choices"]
    assert choice["text"] == "<s>one two"
    assert choice["logprobs"] == {
        "tokens": ["<s>", "one", " two"],
        "token_logprobs": [None, -2.0, -2.0],
        "top_logprobs": [None, {"x": -0.5, "one": -2.0}, {"x": -0.5, " two": -2.0}],
        "text_offset": [0, 3, 6],
    }
    assert choice["finish_reason"] == "length"
    assert document["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    assert node.jobs[0].sampling.max_tokens == 0


async def test_an_echoed_text_with_what_follows(
    program: httpx.AsyncClient, node: FakeClient
) -> None:
    document = await completed(program, prompt="one two", echo=True, logprobs=0, n=2)
    first, second = document["choices"]
    assert first["text"] == second["text"] == "one two!"
    assert first["logprobs"] == second["logprobs"]
    assert first["logprobs"]["tokens"] == ["<s>", "one", " two", "!"]
    assert first["logprobs"]["token_logprobs"] == [None, -2.0, -2.0, -0.25]
    assert first["logprobs"]["text_offset"] == [0, 0, 3, 7]  # <bos> is not in the text
    assert [job.sampling.prompt_logprobs for job in node.jobs] == [0, None]  # once is enough


async def test_an_echo_without_logprobs(program: httpx.AsyncClient, node: FakeClient) -> None:
    document = await completed(program, prompt=["one two", "x"], echo=True)
    assert [choice["text"] for choice in document["choices"]] == ["one two!", "x!"]
    assert all(choice["logprobs"] is None for choice in document["choices"])
    assert [job.sampling.prompt_logprobs for job in node.jobs] == [None, None]
    document = await completed(program, prompt=[5, 6], echo=True)
    assert document["choices"][0]["text"] == "one two!"


async def test_vllms_prompt_logprobs(program: httpx.AsyncClient, node: FakeClient) -> None:
    document = await completed(program, prompt=[4, 5], prompt_logprobs=2, max_tokens=1)
    [choice] = document["choices"]
    assert choice["text"] == "!"
    assert choice["prompt_logprobs"] == [
        None,
        {
            "7": {"logprob": -0.5, "rank": 1, "decoded_token": "x"},
            "8": {"logprob": -1.5, "rank": 2, "decoded_token": "y"},
            "5": {"logprob": -2.0, "rank": None, "decoded_token": "one"},
        },
    ]


async def test_streams_begin_with_the_echo(program: httpx.AsyncClient, node: FakeClient) -> None:
    body = {
        "model": "tiny",
        "stream": True,
        "echo": True,
        "stream_options": {"include_usage": True},
    }
    answer = await program.post(
        "/v1/completions", json={**body, "prompt": ["one two", "x"], "logprobs": 1}
    )
    *chunks, last = payloads(answer.text)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [each["text"] for each in choices if each["index"] == 0] == ["one two", "!", ""]
    assert [each["text"] for each in choices if each["index"] == 1] == ["x", "!", ""]
    echoed, made, end = (each for each in choices if each["index"] == 0)
    assert echoed["logprobs"]["token_logprobs"] == [None, -2.0, -2.0]
    assert made["logprobs"]["text_offset"] == [7]
    assert (end["finish_reason"], end["logprobs"]) == ("length", None)
    assert last["usage"] == {"prompt_tokens": 6, "completion_tokens": 2, "total_tokens": 8}
    assert answer.text.count("[DONE]") == 1
    answer = await program.post(
        "/v1/completions", json={**body, "prompt": "one two", "max_tokens": 0}
    )
    texts = [chunk["choices"][0]["text"] for chunk in payloads(answer.text)[:-1]]
    assert texts == ["one two", ""]


async def test_the_best_of_several(program: httpx.AsyncClient, fake: FakeClient) -> None:
    likely = iter([-3.0, -0.5, -1.0])

    def answers(job: Job) -> list[AnyFrame]:
        logprob = next(likely)
        entry = TokenLogprob(b"x", logprob)
        delta = Delta(request_id=job.request_id, text=f"{logprob}", logprobs=(entry,))
        end = Finished(
            request_id=job.request_id, reason="stop", prompt_tokens=3, completion_tokens=1
        )
        return [delta, end]

    fake.script = answers
    document = await completed(program, prompt="a", n=2, best_of=3)
    assert [(each["index"], each["text"]) for each in document["choices"]] == [
        (0, "-0.5"),
        (1, "-1.0"),
    ]
    assert all(choice["logprobs"] is None for choice in document["choices"])
    assert document["usage"]["completion_tokens"] == 3
    assert [job.sampling.logprobs for job in fake.jobs] == [0, 0, 0]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"suffix": "end"}, "suffix"),
    ],
)
async def test_what_is_refused(
    program: httpx.AsyncClient, node: FakeClient, fields: dict[str, Any], field: str
) -> None:
    answer = await program.post("/v1/completions", json={"model": "tiny", "prompt": "x", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert node.jobs == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": "a", "prompt_logprobs": 0}, "prompt_logprobs"),
        ({"prompt": "a", "best_of": 2}, "n"),
    ],
)
async def test_only_one_text_is_kept(
    program: httpx.AsyncClient, node: FakeClient, fields: dict[str, Any], field: str
) -> None:
    answer = await program.post(
        "/v1/completions", json={"model": "tiny", **fields}, headers={"Idempotency-Key": "k"}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert "Idempotency-Key" in answer.json()["error"]["message"]


async def test_special_tokens_can_be_left_out(program: httpx.AsyncClient, node: FakeClient) -> None:
    await completed(program, prompt="a", add_special_tokens=False)
    assert node.jobs[0].add_special_tokens is False


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({"max_completion_tokens": 3}, 3),
        ({"max_completion_tokens": 3, "max_tokens": None}, 3),
        ({"max_completion_tokens": 3, "max_tokens": 5}, 5),
        ({"max_completion_tokens": 3, "max_tokens": 0, "echo": True}, 0),
    ],
)
async def test_the_limit_has_the_name_of_chat_completions_too(
    program: httpx.AsyncClient, node: FakeClient, fields: dict[str, Any], most: int
) -> None:
    await completed(program, prompt="a", **fields)
    assert [job.sampling.max_tokens for job in node.jobs] == [most]
