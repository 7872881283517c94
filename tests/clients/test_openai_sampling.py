"""Sampling as OpenAI's library asks for it, with a tiny real model behind the service."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from openai import OpenAI

from tests.instance import Instance
from tests.realbroker import NodeProcess, root
from tests.unit.engine.tiny import save_model, tokenizer

MODEL = "tiny"
BYTES = tokenizer()
Z = BYTES.convert_tokens_to_ids("z")


@pytest.fixture(scope="module")
def sdk(service: Instance, key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = save_model("llama", tmp_path_factory.mktemp("models") / "llama")
    options = [
        "--parent",
        "tiny-root",
        "--model",
        MODEL,
        "--engine",
        "transformers",
        "--slots",
        "4",
        "--device",
        "cpu",
    ]
    with (
        root(service.broker, "tiny-root", MODEL),
        NodeProcess(
            service.broker,
            "tiny-1",
            *options,
            "--model-path",
            str(folder),
            env={"CANOPY_THREADS": "1"},
        ),
        OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0, timeout=60) as client,
    ):
        yield client


def text(sdk: OpenAI, prompt: str = "Once upon a time", **asked: object) -> str:
    asked = {"max_tokens": 24, **asked}
    return sdk.completions.create(model=MODEL, prompt=prompt, **asked).choices[0].text  # type: ignore[call-overload]


def test_logprobs_of_a_text(sdk: OpenAI) -> None:
    answer = sdk.completions.create(
        model=MODEL, prompt="Once", max_tokens=12, temperature=0, logprobs=5
    )
    [choice] = answer.choices
    logprobs = choice.logprobs
    assert logprobs is not None
    assert (
        logprobs.tokens,
        logprobs.token_logprobs,
        logprobs.top_logprobs,
        logprobs.text_offset,
    ) != (None,) * 4
    assert "".join(logprobs.tokens or []) == choice.text
    assert logprobs.text_offset == list(range(12))
    for token, logprob, top in zip(
        logprobs.tokens or [],
        logprobs.token_logprobs or [],
        logprobs.top_logprobs or [],
        strict=True,
    ):
        assert len(top) == 5
        assert top[token] == logprob == max(top.values()) < 0


def test_logprobs_of_a_chat_are_the_same_in_a_stream(sdk: OpenAI) -> None:
    options = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0,
        "max_tokens": 16,
    }
    whole = sdk.chat.completions.create(**options, logprobs=True, top_logprobs=20)  # type: ignore[call-overload]
    [choice] = whole.choices
    content = choice.logprobs.content
    assert (
        bytes(byte for each in content for byte in each.bytes).decode().lstrip()
        == choice.message.content
    )
    assert all(len(each.top_logprobs) == 20 for each in content)
    stream = sdk.chat.completions.create(**options, logprobs=True, top_logprobs=20, stream=True)  # type: ignore[call-overload]
    streamed = [
        each
        for chunk in stream
        for choice in chunk.choices
        if choice.logprobs
        for each in choice.logprobs.content
    ]
    assert [each.token for each in streamed] == [each.token for each in content]
    assert [each.logprob for each in streamed] == pytest.approx(
        [each.logprob for each in content], abs=1e-3
    )


def test_the_same_seed_is_the_same_text_in_any_company(sdk: OpenAI) -> None:
    settings = {"seed": 11, "temperature": 1.0, "top_p": 0.95, "presence_penalty": 0.5}
    alone = text(sdk, **settings)
    with ThreadPoolExecutor(4) as pool:
        others = [
            pool.submit(text, sdk, f"Other {n}", temperature=1.5, max_tokens=12 + 9 * n)
            for n in range(3)
        ]
        assert pool.submit(text, sdk, **settings).result() == alone
        assert len({other.result() for other in others}) == 3
    assert text(sdk, **{**settings, "seed": 12}) != alone


def test_choices_have_the_seeds_that_follow(sdk: OpenAI) -> None:
    answer = sdk.completions.create(
        model=MODEL, prompt="Once upon a time", max_tokens=24, seed=5, n=3
    )
    assert [choice.text for choice in answer.choices] == [
        text(sdk, seed=seed) for seed in (5, 6, 7)
    ]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("Once upon a time") + 1


def test_a_bias_forces_and_forbids_tokens(sdk: OpenAI) -> None:
    assert text(sdk, max_tokens=5, logit_bias={str(Z): 100}) == "zzzzz"
    plain = text(sdk, temperature=0)
    banned = BYTES.convert_tokens_to_ids(plain[0])
    assert plain[0] not in text(sdk, temperature=0, logit_bias={str(banned): -100})


def test_penalties_make_it_say_something_else(sdk: OpenAI) -> None:
    letters = BYTES.convert_tokens_to_ids(list("abcdefgh"))
    few = {"temperature": 0, "max_tokens": 8, "logit_bias": {str(letter): 50 for letter in letters}}
    penalty = {"extra_body": {"repetition_penalty": 10.0}, "presence_penalty": 2.0}
    assert len(set(text(sdk, prompt="?", **few))) < 8
    assert set(text(sdk, prompt="?", **few, **penalty)) == set("abcdefgh")


def test_min_p_of_one_takes_the_likeliest(sdk: OpenAI) -> None:
    assert text(sdk, temperature=2.0, extra_body={"min_p": 1.0}) == text(sdk, temperature=0)


def test_a_token_that_the_model_does_not_have(sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="logit_bias: the model has no token 5000"):
        text(sdk, logit_bias={"5000": 1})
