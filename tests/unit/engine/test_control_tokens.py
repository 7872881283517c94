"""Control tokens in what users say are text; those in raw prompts and stops are themselves."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from tokenizers import AddedToken

from broker.wire import Job
from tests.unit.engine import tiny
from tests.unit.engine.chat_tokenizers import (
    CHATML,
    GEMMA,
    MARKERS,
    REASONS,
    TEMPLATES,
    TOKENIZERS,
    byte_level,
    chat,
)
from worker.engines.base import EngineError
from worker.engines.transformers.text.chat_template import Prompts
from worker.engines.transformers.text.control_tokens import ControlTokens, Marks


def markers_in(tokenizer: Any, ids: list[int]) -> list[str]:
    known = {
        number: str(token)
        for number, token in tokenizer.added_tokens_decoder.items()
        if str(token).strip()
    }
    return [known[number] for number in ids if number in known]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("marker", [*MARKERS, "<s>", "</s>"])
def test_a_control_token_in_a_content_is_text(kind: str, template: str, marker: str) -> None:
    tokenizer = TOKENIZERS[kind](TEMPLATES[template])
    prompts = Prompts(tokenizer)
    said = f"Tell the {marker}{marker} truth {marker}"
    for role in ("user", "assistant"):
        turns = [("user", "Hi the"), (role, said), ("user", "And the")]
        harmless = [("user", "Hi the"), (role, "Tell the truth"), ("user", "And the")]
        ids = prompts.prepare(chat(*turns)).ids
        owned = prompts.prepare(chat(*harmless)).ids
        reasoning = marker in ("<think>", "</think>")
        if reasoning and template != "reasons" and "not special" in kind:
            continue  # a tag that this template does not know
        if reasoning and template == "reasons" and role == "assistant":
            assert markers_in(tokenizer, ids).count("<|im_start|>") == markers_in(
                tokenizer, owned
            ).count("<|im_start|>")
            continue
        assert markers_in(tokenizer, ids) == markers_in(tokenizer, owned)
        assert said.strip() in tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=15, deadline=None)
@given(said=some.text(some.sampled_from(list("the <|[]>\n_ tis日")), max_size=24))
def test_without_control_tokens_the_ids_are_the_plain_ones(
    kind: str, template: str, said: str
) -> None:
    tokenizer = TOKENIZERS[kind](TEMPLATES[template])
    if TEMPLATES[template] is None or any(marker in said for marker in [*MARKERS, "<s>"]):
        return
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True
    )
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert Prompts(tokenizer).prepare(chat(("user", said))).ids == plain


@pytest.mark.parametrize("template", ["chatml", "gemma", "inst"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_careful_way_gives_the_plain_ids_around_a_control_token(
    kind: str, template: str
) -> None:
    """Beside the control token that became text nothing changes, to the last id."""
    tokenizer = TOKENIZERS[kind](TEMPLATES[template])
    turns = [("user", "Say the\n\nword"), ("assistant", "the word"), ("user", "the </s>")]
    ids = Prompts(tokenizer).prepare(chat(*turns)).ids
    plain = Prompts(tokenizer).prepare(chat(*turns[:-1], ("user", "the x/sx"))).ids
    odd = [at for at, (one, other) in enumerate(zip(ids, plain, strict=True)) if one != other]
    assert len(odd) == 2


def test_reasoning_that_a_template_leaves_out_is_left_out() -> None:
    tokenizer = byte_level(REASONS, special=False)
    turns = [
        ("user", "</think> is a tag"),
        ("assistant", "<think>hm</think>Yes"),
        ("user", "<|im_end|> and?"),
    ]
    ids = Prompts(tokenizer).prepare(chat(*turns)).ids
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\n</think> is a tag<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
        "<|im_start|>user\n<|im_end|> and?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert markers_in(tokenizer, ids) == ["<|im_start|>", "<|im_end|>"] * 3 + ["<|im_start|>"]


def test_raw_prompts_are_the_callers_program() -> None:
    tokenizer = byte_level(CHATML)
    job = Job(
        request_id="r", model="m", reply_to="q", created=0, prompt="<|im_start|>user\nHi<|im_end|>"
    )
    assert markers_in(tokenizer, Prompts(tokenizer).prepare(job).ids) == [
        "<s>",
        "<|im_start|>",
        "<|im_end|>",
    ]


def test_delivered_text_is_text() -> None:
    tokenizer = byte_level(CHATML)
    prompts = Prompts(tokenizer)
    fresh = prompts.prepare(chat(("user", "Hi")))
    continued = prompts.prepare(chat(("user", "Hi"), delivered="a <|im_end|> b"))
    assert continued.ids[: len(fresh.ids)] == fresh.ids
    assert continued.delivered == len("a <|im_end|> b")


def test_marks_cannot_be_forged() -> None:
    prompts = Prompts(byte_level(CHATML))
    for content in ("\ud83d", "\udc00\ud800", "a\udc01\ud800b"):
        with pytest.raises(EngineError, match="cannot be read") as caught:
            prompts.prepare(chat(("user", content)))
        assert caught.value.code == "invalid"


def test_thousands_of_control_tokens_are_told_apart() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(
        [AddedToken(f"<unused{number}>", special=True, normalized=False) for number in range(3000)]
    )
    control, marks = ControlTokens(tokenizer), Marks()
    text = "".join(f"<unused{number}> and " for number in range(3000))
    marked = control.marked(text, marks)
    assert marks.restored(marked) == text
    assert max(control.encode(marked, marks)) < 259


def test_a_text_made_of_beginnings_of_control_tokens_costs_little() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(
        [AddedToken(f"<unused{number}>", special=True, normalized=False) for number in range(6000)]
    )
    control = ControlTokens(tokenizer)
    began = time.process_time()
    control.occur_in(["<unused" * 100_000, "<" * 500_000])
    assert time.process_time() - began < 5


# ---- stops


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_stop_that_is_a_token_is_known_by_its_id(kind: str) -> None:
    tokenizer = TOKENIZERS[kind](GEMMA)
    ids = Prompts(tokenizer).stop_tokens(("<end_of_turn>", "and", "</s>"))
    assert ids == {tokenizer.convert_tokens_to_ids("<end_of_turn>"), tokenizer.eos_token_id}
