"""Anthropic's own Python library against /v1/messages."""

from collections.abc import Iterator

import anthropic
import httpx
import pytest
from anthropic import Anthropic
from anthropic.types import MessageParam

from tests.instance import Instance, at_rest, tree_when

QUESTION = "what goes up must come down"
WORDS = 6  # of it; the echo repeats them up to the limit
LONG = 5000  # words: nearly a minute


def asking(text: str) -> list[MessageParam]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def sdk(service: Instance, key: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=service.url, api_key=key, max_retries=0, timeout=60) as client:
        yield client


def test_a_message(sdk: Anthropic) -> None:
    message = sdk.messages.create(
        model="echo", max_tokens=WORDS, system="be brief", messages=asking(QUESTION)
    )
    [block] = message.content
    assert block.type == "text"
    assert block.text == QUESTION
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", WORDS)
    assert message._request_id == message.id.removeprefix("msg_")


def test_a_message_that_a_sequence_stops(sdk: Anthropic) -> None:
    message = sdk.messages.create(
        model="echo", max_tokens=WORDS, messages=asking(QUESTION), stop_sequences=["must"]
    )
    [block] = message.content
    assert block.type == "text"
    assert (block.text, message.usage.output_tokens) == ("what goes up ", 4)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "must")


def test_a_stream(sdk: Anthropic) -> None:
    with sdk.messages.stream(model="echo", max_tokens=WORDS, messages=asking(QUESTION)) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(texts) == QUESTION
    assert len(texts) > 1
    assert final.stop_reason == "max_tokens"
    assert final.usage.input_tokens == final.usage.output_tokens == WORDS


def test_a_key_as_a_bearer_token(service: Instance, key: str) -> None:
    with Anthropic(base_url=service.url, auth_token=key, api_key=None, max_retries=0) as client:
        message = client.messages.create(model="echo", max_tokens=9, messages=asking(QUESTION))
    assert message.type == "message"


def test_tokens_are_counted(sdk: Anthropic) -> None:
    counted = sdk.messages.count_tokens(model="echo", messages=asking(QUESTION))
    message = sdk.messages.create(model="echo", max_tokens=9, messages=asking(QUESTION))
    assert counted.input_tokens == message.usage.input_tokens


def test_errors_are_its_own(service: Instance, sdk: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="no model") as missing:
        sdk.messages.create(model="nope", max_tokens=9, messages=asking("x"))
    assert missing.value.type == "not_found_error"
    assert missing.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="images"):
        sdk.messages.create(
            model="echo",
            max_tokens=9,
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "url", "url": "https://x.example"}}
                    ],
                }
            ],
        )
    with (
        Anthropic(base_url=service.url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model="echo", max_tokens=9, messages=asking("x"))


def test_a_stream_that_is_closed_ends_its_job(sdk: Anthropic, staff: httpx.Client) -> None:
    with sdk.messages.stream(model="echo", max_tokens=LONG, messages=asking(QUESTION)) as stream:
        assert next(iter(stream.text_stream)) == "what"
    tree_when(staff, at_rest)
