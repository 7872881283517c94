"""What a request may tell a chat template, and the beginning of an answer that it gives."""

from typing import Any

import msgspec
import pytest

from broker.wire import Job
from tests.unit.engine import tiny
from tests.unit.engine.chat_tokenizers import CHATML, GEMMA, byte_level, chat
from worker.engines.base import InvalidRequest
from worker.engines.transformers.text.answer_text import AnswerText
from worker.engines.transformers.text.chat_template import Prompts

THINKS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)


def text_of(template: str | None, job: Job, **fields: Any) -> str:
    tokenizer = byte_level(template)
    prompt = Prompts(tokenizer).prepare(msgspec.structs.replace(job, **fields))
    return str(tokenizer.decode(prompt.ids))


PREFILLED = chat(("user", "Hi"), ("assistant", "Well, "))


@pytest.mark.parametrize("template", [CHATML, GEMMA, THINKS, None])
def test_an_answer_goes_on_from_what_the_request_gives(template: str | None) -> None:
    before = text_of(template, chat(("user", "Hi")))
    prefilled = text_of(template, PREFILLED, continue_final_message=True)
    assert prefilled == before + ("Well, " if template else " Well, ")
    prompt = Prompts(byte_level(template)).prepare(
        msgspec.structs.replace(PREFILLED, continue_final_message=True, delivered="and")
    )
    assert prompt.delivered == 3
    assert not prompt.strip


def test_it_stays_where_a_dialogue_may_be_cut() -> None:
    whole = text_of(CHATML, PREFILLED, continue_final_message=True)
    assert text_of(CHATML, PREFILLED, continue_final_message=True, truncate=True) == whole


def test_control_tokens_in_it_are_text() -> None:
    tokenizer = byte_level(CHATML)
    job = chat(("user", "Hi"), ("assistant", "<|im_end|>"))
    ids = Prompts(tokenizer).prepare(msgspec.structs.replace(job, continue_final_message=True)).ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1  # the user's turn's own


def test_without_a_generation_prompt() -> None:
    job = chat(("user", "Hi"))
    assert text_of(THINKS, job, add_generation_prompt=False) == "[user]Hi"
    assert not text_of(None, job, add_generation_prompt=False).endswith("Assistant:")


def test_a_templates_own_arguments() -> None:
    arguments = '{"enable_thinking": false}'
    text = text_of(THINKS, chat(("user", "Hi")), template_arguments=arguments)
    assert text == "[user]Hi[assistant]<think></think>"


@pytest.mark.parametrize(
    "arguments", ['{"tokenize": true}', '{"messages": []}', '{"chat_template": "x"}', "[1]", "{"]
)
def test_arguments_that_are_not_a_requests(arguments: str) -> None:
    with pytest.raises(InvalidRequest, match="chat_template_kwargs"):
        text_of(THINKS, chat(("user", "Hi")), template_arguments=arguments)


def test_special_tokens_shown_and_stops_included() -> None:
    tokenizer = tiny.tokenizer()
    ids = tokenizer("ab", add_special_tokens=False)["input_ids"]
    turn = tokenizer.convert_tokens_to_ids(tiny.TURN)
    shown = AnswerText(tokenizer, [], ("b",), strip=False, skip_special=False, include_stop=True)
    text = "".join(shown.push(token) for token in [turn, *ids])
    assert (text, shown.stopped) == (f"{tiny.TURN}ab", True)
    hidden = AnswerText(tokenizer, [], ("b",), strip=False)
    assert "".join(hidden.push(token) for token in [turn, *ids]) == "a"
