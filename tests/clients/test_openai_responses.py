"""OpenAI's own Python library against /v1/responses."""

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI
from openai.types.responses import ResponseInputParam
from pydantic import BaseModel

from tests.instance import Instance

QUESTION = "what goes up must come down"
LONG = 3000  # words: half a minute


@pytest.fixture
def sdk(service: Instance, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        yield client


def test_a_text_is_answered(sdk: OpenAI) -> None:
    response = sdk.responses.create(model="echo", input=QUESTION, instructions="be brief")
    assert (response.output_text, response.status) == (QUESTION, "completed")
    assert response.usage is not None
    assert response.usage.output_tokens == 6
    assert sdk.responses.retrieve(response.id).output_text == QUESTION


def test_a_stream_of_events(sdk: OpenAI) -> None:
    text = ""
    with sdk.responses.stream(model="echo", input=QUESTION) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
        final = stream.get_final_response()
    assert text == final.output_text == QUESTION
    assert final.status == "completed"


def test_a_dialogue_of_stored_responses(sdk: OpenAI) -> None:
    first = sdk.responses.create(model="echo", input=QUESTION)
    second = sdk.responses.create(model="echo", input="and then", previous_response_id=first.id)
    assert second.output_text == "and then"
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    listed = sdk.responses.input_items.list(second.id).data
    assert [item.type for item in listed] == ["message"]
    sdk.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="deleted or has expired"):
        sdk.responses.create(model="echo", input="x", previous_response_id=second.id)


def test_its_own_output_may_be_sent_back(sdk: OpenAI) -> None:
    response = sdk.responses.create(model="echo", input=QUESTION, store=False)
    dialogue: ResponseInputParam = [
        {"role": "user", "content": QUESTION},
        *(item.model_dump(exclude_none=True) for item in response.output),  # type: ignore[list-item]
        {"role": "user", "content": "again"},
    ]
    assert sdk.responses.create(model="echo", input=dialogue).output_text == "again"


def test_one_in_the_background_is_read_and_cancelled(sdk: OpenAI) -> None:
    words = "word " * LONG
    stream = sdk.responses.create(model="echo", input=words, background=True, stream=True)
    seen, position, text = "", -1, ""
    for event in stream:
        if event.type == "response.created":
            seen = event.response.id
        position = event.sequence_number
        if event.type == "response.output_text.delta":
            text += event.delta
        if len(text) > 100:
            break
    stream.close()
    assert sdk.responses.retrieve(seen).status == "in_progress"
    for event in sdk.responses.retrieve(seen, stream=True, starting_after=position):
        assert event.sequence_number > position
        if event.type == "response.output_text.delta":
            text += event.delta
            break
    cancelled = sdk.responses.cancel(seen)
    assert cancelled.status == "cancelled"
    assert words.startswith(text)
    assert cancelled.output_text.startswith(text)


def test_errors_are_its_own(sdk: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model"):
        sdk.responses.create(model="nope", input="x")
    with pytest.raises(openai.BadRequestError, match="web_search"):
        sdk.responses.create(model="echo", input="x", tools=[{"type": "web_search"}])


class City(BaseModel):
    """What is asked for."""

    name: str


def test_an_answer_is_parsed(sdk: OpenAI) -> None:
    response = sdk.responses.parse(model="echo", input='{"name":"Oslo"}', text_format=City)
    assert isinstance(response.output_parsed, City)
