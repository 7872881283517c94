"""OpenAI's own Python library against /v1, in both directions."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.instance import Instance, at_rest, total, tree_when

QUESTION = "what goes up must come down"
LONG = 20_000  # words: more than three minutes, so whoever sees it end sooner has ended it


def asking(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def sdk(service: Instance, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
async def async_sdk(service: Instance, key: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{service.url}/v1", api_key=key, max_retries=0, timeout=60
    ) as client:
        yield client


# ---- answers


def test_choices_come_together_and_interleaved(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.create(model="echo", messages=asking(QUESTION), n=3)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [
        (n, QUESTION) for n in range(3)
    ]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 18)
    texts = ["", ""]
    order = []
    for chunk in sdk.chat.completions.create(
        model="echo", messages=asking(QUESTION), n=2, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            order.append(choice.index)
    assert texts == [QUESTION] * 2
    assert order != sorted(order)


def test_an_engine_without_logprobs_answers_without(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="echo", messages=asking(QUESTION), logprobs=True, top_logprobs=2
    )
    assert (answer.choices[0].message.content, answer.choices[0].logprobs) == (QUESTION, None)


def test_models_are_listed_and_found(sdk: OpenAI) -> None:
    assert "echo" in [model.id for model in sdk.models.list()]
    assert sdk.models.retrieve("echo").id == "echo"


def test_a_chat_answer_in_one_piece(sdk: OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "be brief"},
        *asking("first"),
        {"role": "assistant", "content": "yes"},
        *asking(QUESTION),
    ]
    answer = sdk.chat.completions.create(model="echo", messages=messages)
    assert answer.object == "chat.completion"
    assert answer.model == "echo"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == QUESTION
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6


def test_a_limited_answer_says_so(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.create(model="echo", messages=asking(QUESTION), max_tokens=3)
    assert answer.choices[0].message.content == "what goes up"
    assert answer.choices[0].finish_reason == "length"
    newer = sdk.chat.completions.create(
        model="echo", messages=asking(QUESTION), max_completion_tokens=2
    )
    assert newer.choices[0].message.content == "what goes"


def test_a_stop_string_ends_the_answer_before_itself(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.create(model="echo", messages=asking(QUESTION), stop=["must"])
    assert answer.choices[0].message.content == "what goes up "
    assert answer.choices[0].finish_reason == "stop"


def test_a_chat_answer_as_a_stream(sdk: OpenAI) -> None:
    chunks = list(sdk.chat.completions.create(model="echo", messages=asking(QUESTION), stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(pieces) > 1
    assert "".join(pieces) == QUESTION
    assert [
        chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason
    ] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_its_usage_if_asked(sdk: OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="echo", messages=asking(QUESTION), stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 6


def test_a_completion_in_one_piece_and_as_a_stream(sdk: OpenAI) -> None:
    answer = sdk.completions.create(model="echo", prompt=QUESTION)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == QUESTION
    assert answer.choices[0].finish_reason == "stop"
    pieces = [
        chunk.choices[0].text
        for chunk in sdk.completions.create(model="echo", prompt=QUESTION, stream=True)
    ]
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces) == QUESTION


@pytest.mark.parametrize(("requested", "served"), [("flex", "flex"), ("priority", "default")])
def test_the_tier_that_served_is_told(
    sdk: OpenAI, requested: Literal["flex", "priority"], served: str
) -> None:
    answer = sdk.chat.completions.create(
        model="echo", messages=asking(QUESTION), service_tier=requested
    )
    assert (answer.service_tier, answer.choices[0].message.content) == (served, QUESTION)
    stream = sdk.chat.completions.create(
        model="echo", messages=asking(QUESTION), service_tier=requested, stream=True
    )
    assert {chunk.service_tier for chunk in stream} == {served}


def test_every_script_survives(sdk: OpenAI) -> None:
    question = "naïve 東京 🌳🌲 עברית e\u0301 👩\u200d👩\u200d👧 «fin»"
    assert (
        sdk.chat.completions.create(model="echo", messages=asking(question))
        .choices[0]
        .message.content
        == question
    )
    stream = sdk.chat.completions.create(model="echo", messages=asking(question), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == question


async def test_a_hundred_at_once_get_each_their_own(async_sdk: AsyncOpenAI) -> None:
    questions = [f"number {number} says {number * number} times" for number in range(100)]

    async def ask(question: str) -> str | None:
        answer = await async_sdk.chat.completions.create(model="echo", messages=asking(question))
        return answer.choices[0].message.content

    assert await asyncio.gather(*map(ask, questions)) == questions


async def test_a_hundred_streams_at_once_get_each_their_own(async_sdk: AsyncOpenAI) -> None:
    questions = [f"stream {number} says {number * number} times" for number in range(100)]

    async def ask(question: str) -> str:
        stream = await async_sdk.chat.completions.create(
            model="echo", messages=asking(question), stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert await asyncio.gather(*map(ask, questions)) == questions


# ---- leaving early


def test_closing_a_stream_early_frees_the_slot(sdk: OpenAI, staff: httpx.Client) -> None:
    stream = sdk.chat.completions.create(
        model="echo", messages=asking(QUESTION), stream=True, max_tokens=LONG
    )
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    tree_when(staff, lambda tree: total(tree, "running") == 1)
    stream.close()
    tree_when(staff, at_rest)


async def test_giving_up_on_an_answer_frees_the_slot(
    async_sdk: AsyncOpenAI, staff: httpx.Client
) -> None:
    request = asyncio.create_task(
        async_sdk.chat.completions.create(model="echo", messages=asking(QUESTION), max_tokens=LONG)
    )
    await asyncio.to_thread(tree_when, staff, lambda tree: total(tree, "running") == 1)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await asyncio.to_thread(tree_when, staff, at_rest)


def test_a_client_that_loses_patience_frees_the_slot(sdk: OpenAI, staff: httpx.Client) -> None:
    with pytest.raises(openai.APITimeoutError):
        sdk.with_options(timeout=0.5).chat.completions.create(
            model="echo", messages=asking(QUESTION), max_tokens=LONG
        )
    tree_when(staff, at_rest)


# ---- refusals


def test_a_wrong_key_is_an_authentication_error(service: Instance) -> None:
    with OpenAI(
        base_url=f"{service.url}/v1", api_key="canopy_wrong_key", max_retries=0
    ) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.models.list()
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model="echo", messages=asking("hello"))


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(
    sdk: OpenAI, stream: bool
) -> None:
    with pytest.raises(openai.NotFoundError, match="there are: echo") as refused:
        sdk.chat.completions.create(model="gpt-17", messages=asking("hello"), stream=stream)
    assert refused.value.code == "model_not_found"
    assert refused.value.param == "model"


def test_an_unknown_model_is_not_found_alone_either(sdk: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="echo"):
        sdk.models.retrieve("gpt-17")


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("messages", {"messages": []}),
        ("messages[0].role", {"messages": [{"role": "wizard", "content": "abracadabra"}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": 7}]}),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        ("temperature", {"temperature": 3}),
        ("temperature", {"temperature": -1}),
        ("top_p", {"top_p": -0.1}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": "many"}),
        ("seed", {"seed": 1.5}),
        ("n", {"n": 129}),
        ("logit_bias", {"logit_bias": {"tree": 1}}),
        ("frequency_penalty", {"frequency_penalty": 3}),
        ("top_logprobs", {"top_logprobs": 3}),
        ("service_tier", {"service_tier": "gold"}),
        ("stop", {"stop": [str(number) for number in range(17)]}),
    ],
)
def test_a_bad_request_names_the_field(sdk: OpenAI, field: str, options: dict[str, object]) -> None:
    asked = {"model": "echo", "messages": asking("hello"), **options}
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(**asked)  # type: ignore[call-overload]
    assert str(refused.value.param).startswith(field)
    assert field in refused.value.message


# ---- what clients get wrong, or send without need


def test_a_base_url_without_v1_is_told_the_right_one(service: Instance, key: str) -> None:
    for base_url in (service.url, f"{service.url}/v1/v1", f"{service.url}//v1"):
        with OpenAI(base_url=base_url, api_key=key, max_retries=0) as lost:
            with pytest.raises(openai.NotFoundError, match="use /v1/chat/completions: ") as refused:
                lost.chat.completions.create(model="echo", messages=asking(QUESTION))
            assert refused.value.type == "invalid_request_error"


def test_what_would_change_the_answer_unseen_is_refused_by_name(sdk: OpenAI) -> None:
    requests: list[tuple[str, dict[str, object]]] = [
        ("web_search_options", {"web_search_options": {}}),
        ("modalities", {"modalities": ["audio"]}),
        ("use_beam_search", {"extra_body": {"use_beam_search": True}}),
    ]
    for name, options in requests:
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.chat.completions.create(model="echo", messages=asking(QUESTION), **options)  # type: ignore[call-overload]
        assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")


def test_a_cut_emoji_and_an_empty_answer_are_taken(sdk: OpenAI, program: httpx.Client) -> None:
    history: list[ChatCompletionMessageParam] = [
        *asking("first"),
        {"role": "assistant", "content": None},
    ]
    answer = sdk.chat.completions.create(
        model="echo", messages=[*history, *asking(QUESTION)], stop=""
    )
    assert answer.choices[0].message.content == QUESTION
    cut = '{"model": "echo", "messages": [{"role": "user", "content": "a tree \\ud83c"}]}'
    answer_to_cut = program.post("/v1/chat/completions", content=cut)
    assert answer_to_cut.json()["choices"][0]["message"]["content"] == "a tree \ufffd"


def test_a_hundred_and_twenty_eight_choices(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.create(model="echo", messages=asking("yes"), n=128)
    assert [choice.message.content for choice in answer.choices] == ["yes"] * 128
