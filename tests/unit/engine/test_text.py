"""From tokens to text, from messages to prompts: the parts without a model."""

from typing import Any

import jinja2
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as some
from tokenizers import Tokenizer, decoders, models

from broker.wire import ChatMessage, Job
from tests.unit.engine.tiny import tokenizer
from worker.engines.base import EngineError
from worker.engines.transformers.fallback.padded_layer import PaddedLayer
from worker.engines.transformers.fallback.recurrent_state import RecurrentLayer
from worker.engines.transformers.text.chat_template import (
    DIALOGUE_STOPS,
    PREAMBLE,
    dialogue,
    prepare,
)
from worker.engines.transformers.text.detokenizer import Detokenizer
from worker.engines.transformers.text.token_bytes import TokenBytes

BYTES = tokenizer()
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)


def chat(*turns: tuple[str, str], delivered: str = "") -> Job:
    messages = tuple(ChatMessage(role=role, content=text) for role, text in turns)  # type: ignore[arg-type]
    return Job(
        request_id="r", model="m", reply_to="q", created=0, messages=messages, delivered=delivered
    )


def prompt(text: str, delivered: str = "") -> Job:
    return Job(request_id="r", model="m", reply_to="q", created=0, prompt=text, delivered=delivered)


@settings(max_examples=50, deadline=None)
@given(
    some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=20)
)
def test_any_text_streams_in_whole_characters(text: str) -> None:
    stream = Detokenizer(BYTES, BYTES("before ")["input_ids"])
    pieces = [stream.push(token) for token in BYTES(text, add_special_tokens=False)["input_ids"]]
    assert "".join(pieces) + stream.flush() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_is_dropped_at_the_end() -> None:
    stream = Detokenizer(BYTES, [])
    ids = BYTES("a😀", add_special_tokens=False)["input_ids"]
    assert [stream.push(token) for token in ids[:-1]] == ["a", "", "", ""]
    assert stream.flush() == ""


@settings(max_examples=50, deadline=None)
@given(some.text(some.characters(exclude_categories=["Cs"]), max_size=20))
def test_the_bytes_of_the_tokens_are_those_of_the_text(text: str) -> None:
    spelling = TokenBytes(BYTES)
    ids = BYTES(text, add_special_tokens=False)["input_ids"]
    assert b"".join(spelling.of(token) for token in ids) == text.encode()


def sentencepiece() -> Any:
    """As Gemma's: pieces with a visible space, single bytes for what has no piece."""
    pieces = ["<eos>", "▁the", "▁", "tree", *(f"<0x{byte:02X}>" for byte in range(256))]
    core = Tokenizer(
        models.BPE({piece: number for number, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.add_special_tokens(["<eos>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def test_the_bytes_of_other_vocabularies() -> None:
    spelling = TokenBytes(sentencepiece())
    assert [spelling.of(token) for token in (0, 1, 2, 3)] == [b"<eos>", b" the", b" ", b"tree"]
    assert b"".join(spelling.of(4 + byte) for byte in "🌳".encode()).decode() == "🌳"
    assert spelling.of(10**6) == b""
    assert TokenBytes(BYTES).of(BYTES.eos_token_id) == b"</s>"
    words = Tokenizer(models.WordLevel({"tree": 0, "<unk>": 1}, unk_token="<unk>"))
    assert TokenBytes(transformers.PreTrainedTokenizerFast(tokenizer_object=words)).of(0) == b"tree"


class Pieces:
    """Decodes like sentencepiece: the space before the first word of a text is not shown."""

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return (
            "".join(["▁The", "▁cat", "s"][token] for token in token_ids)
            .replace("▁", " ")
            .removeprefix(" ")
        )


def test_words_after_the_prompt_keep_their_space() -> None:
    stream = Detokenizer(Pieces(), [0])
    assert [stream.push(token) for token in (1, 2, 1)] == [" cat", "s", " cat"]


class Fallback:
    """Decodes like byte fallback: bytes that are not UTF-8 as a whole are not shown in parts."""

    def decode(self, token_ids: list[int], **_: Any) -> str:
        try:
            return bytes(token_ids).decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(token_ids)


@pytest.mark.parametrize("prompt", ["😀😀😀", "a😀é", "é", "€€€", ""])
def test_a_prompt_of_many_byte_characters_does_not_spoil_the_answer(prompt: str) -> None:
    stream = Detokenizer(Fallback(), list(prompt.encode()))
    assert [stream.push(byte) for byte in "😀".encode()] == ["", "", "", "😀"]


def test_plain_dialogue() -> None:
    turns = (("user", "Hi"), ("system", "Be kind."), ("assistant", "Hello!"), ("user", "Bye"))
    assert (
        dialogue(chat(*turns).messages or ())
        == "Be kind.\n\nUser: Hi\nAssistant: Hello!\nUser: Bye\nAssistant:"
    )


def test_model_without_template_gets_the_dialogue_and_its_stops() -> None:
    made = prepare(BYTES, chat(("user", "Hi")))
    assert BYTES.decode(made.ids) == f"<s>{PREAMBLE}\nUser: Hi\nAssistant:"
    assert (made.stops, made.strip, made.delivered) == (DIALOGUE_STOPS, True, 0)
    again = prepare(BYTES, chat(("user", "Hi"), delivered="Hel"))
    assert BYTES.decode(again.ids) == f"<s>{PREAMBLE}\nUser: Hi\nAssistant: Hel"
    assert (again.strip, again.delivered) == (False, 4)


def test_own_template_is_used_as_it_is() -> None:
    model = tokenizer()
    model.chat_template = CHATML
    prompt = prepare(model, chat(("system", "S"), ("user", "Hi"), delivered="Yo"))
    assert model.decode(prompt.ids) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo"
    )
    assert (prompt.stops, prompt.delivered) == ((), 2)


def test_template_without_system_role_gets_it_in_the_first_message() -> None:
    model = tokenizer()
    model.chat_template = NO_SYSTEM
    made = prepare(model, chat(("system", "Be kind."), ("user", "Hi")))
    assert "user\nBe kind.\n\nHi<|im_end|>" in model.decode(made.ids)
    assert "user\nalone<|im_end|>" in model.decode(prepare(model, chat(("system", "alone"))).ids)


def test_a_template_that_takes_nothing_says_why() -> None:
    model = tokenizer()
    model.chat_template = "{{ raise_exception('I take nothing') }}"
    with pytest.raises(EngineError, match="I take nothing") as caught:
        prepare(model, chat(("system", "S"), ("user", "Hi")))
    assert caught.value.code == "invalid"
    assert isinstance(caught.value.__cause__, jinja2.TemplateError)


@pytest.mark.parametrize("text", ["Hi", "", "<s>Hi"])
def test_exactly_one_bos(text: str) -> None:
    assert prepare(BYTES, prompt(text)).ids.count(BYTES.bos_token_id) == 1


def test_empty_prompt_without_bos() -> None:
    assert prepare(tokenizer(bos=False), prompt("")).ids == [0]
    bare = tokenizer(bos=False)
    bare.bos_token = None
    with pytest.raises(EngineError, match="empty"):
        prepare(bare, prompt(""))


def test_cache_rows_come_and_go_right_aligned() -> None:
    def layer(*rows: list[float]) -> PaddedLayer:
        filled = PaddedLayer()
        values = torch.tensor(rows)[:, None, :, None]
        filled.update(values, -values)
        return filled

    cache = layer([1, 2, 3], [4, 5, 6])
    cache.adopt(layer([7, 8, 9, 10]))
    assert cache.keys[:, 0, :, 0].tolist() == [[0, 1, 2, 3], [0, 4, 5, 6], [7, 8, 9, 10]]
    cache.remove(0)
    assert cache.keys[:, 0, :, 0].tolist() == [[7, 8, 9, 10], [0, 4, 5, 6]]
    cache.remove(0)
    cache.trim(1)
    for step in range(600):  # beyond the headroom
        cache.update(torch.full((1, 1, 1, 1), step), torch.full((1, 1, 1, 1), -step))
    assert cache.keys[0, 0, :, 0].tolist() == [4, 5, 6, *range(600)]
    assert cache.values[0, 0, :, 0].tolist() == [-4, -5, -6, *(-step for step in range(600))]
    cache.adopt(layer([1, 2]))
    assert cache.keys[1, 0, :, 0].tolist() == [0] * 601 + [1, 2]


def test_states_of_rows_come_and_go() -> None:
    def layer(*rows: float) -> RecurrentLayer:
        filled = RecurrentLayer()
        states = torch.tensor(rows)[:, None, None].expand(-1, 2, 3)
        filled.update_conv_state(states)
        filled.update_recurrent_state(-states)
        return filled

    cache = layer(1.0, 2.0)
    cache.adopt(layer(3.0))
    cache.remove(0)
    cache.trim(5)
    conv_states, recurrent_states = cache.conv_states[0], cache.recurrent_states[0]
    assert conv_states is not None
    assert recurrent_states is not None
    assert conv_states[:, 1, 2].tolist() == [3, 2]
    assert recurrent_states[:, 0, 0].tolist() == [-3, -2]
    cache.update_conv_state(torch.full((2, 2, 1), 9.0))  # a step moves the window by a token
    assert cache.conv_states[0] is not None
    assert cache.conv_states[0][:, 0].tolist() == [[3, 3, 9], [2, 2, 9]]
