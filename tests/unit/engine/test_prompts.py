"""Prompts: control tokens of users are text, every dialogue fits the template, and what is too long
costs little.
"""

import time
from typing import Any, get_args

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as some
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from broker.wire import ChatMessage, Job, Role, Sampling
from tests.unit.engine.tiny import tokenizer
from worker.engines.base import EngineError
from worker.engines.transformers.text.chat_template import Prompts
from worker.engines.transformers.text.control_tokens import ControlTokens, Marks
from worker.engines.transformers.text.dialogue import forms, leading_systems

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}<start_of_turn>model\n"
)
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
REASONS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
MARKERS = [
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<think>",
    "</think>",
]
TEMPLATES = {"chatml": CHATML, "gemma": GEMMA, "inst": INST, "reasons": REASONS, "none": None}


def byte_level(template: str | None, *, special: bool = True) -> Any:
    """A token a byte, and the markers."""
    made = tokenizer()
    made.add_tokens([AddedToken(marker, special=special, normalized=False) for marker in MARKERS])
    made.chat_template = template
    return made


def sentencepiece(template: str | None, *, special: bool = True) -> Any:
    """As Llama's and Gemma's: a visible space, put before the text's beginning; runs of newlines
    are single tokens.
    """
    letters = [chr(code) for code in range(33, 127)]
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        "▁",
        "▁t",
        "th",
        "the",
        *letters,
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    merges = [("▁", "t"), ("t", "h"), ("th", "e")]
    core = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="first", split=False
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    made.add_tokens([AddedToken(marker, special=special, normalized=False) for marker in MARKERS])
    made.chat_template = template
    return made


TOKENIZERS = {
    "bytes": byte_level,
    "bytes, markers not special": lambda template: byte_level(template, special=False),
    "pieces": sentencepiece,
    "pieces, markers not special": lambda template: sentencepiece(template, special=False),
}


def chat(
    *turns: tuple[str, str],
    truncate: bool = False,
    delivered: str = "",
    max_tokens: int | None = None,
) -> Job:
    messages = tuple(ChatMessage(role=role, content=text) for role, text in turns)  # type: ignore[arg-type]
    return Job(
        request_id="r",
        model="m",
        reply_to="q",
        created=0,
        messages=messages,
        truncate=truncate,
        delivered=delivered,
        sampling=Sampling(max_tokens=max_tokens),
    )


def markers_in(made: Any, ids: list[int]) -> list[str]:
    known = {
        number: str(token)
        for number, token in made.added_tokens_decoder.items()
        if str(token).strip()
    }
    return [known[number] for number in ids if number in known]


# ---- control tokens


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("marker", [*MARKERS, "<s>", "</s>"])
def test_a_control_token_in_a_content_is_text(kind: str, template: str, marker: str) -> None:
    made = TOKENIZERS[kind](TEMPLATES[template])
    prompts = Prompts(made)
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
            assert markers_in(made, ids).count("<|im_start|>") == markers_in(made, owned).count(
                "<|im_start|>"
            )
            continue
        assert markers_in(made, ids) == markers_in(made, owned)
        assert said.strip() in made.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=15, deadline=None)
@given(said=some.text(some.sampled_from(list("the <|[]>\n_ tis日")), max_size=24))
def test_without_control_tokens_the_ids_are_the_plain_ones(
    kind: str, template: str, said: str
) -> None:
    made = TOKENIZERS[kind](TEMPLATES[template])
    if TEMPLATES[template] is None or any(marker in said for marker in [*MARKERS, "<s>"]):
        return
    text = made.apply_chat_template(
        [{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True
    )
    plain = made(text, add_special_tokens=False)["input_ids"]
    assert Prompts(made).prepare(chat(("user", said))).ids == plain


@pytest.mark.parametrize("template", ["chatml", "gemma", "inst"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_careful_way_gives_the_plain_ids_around_a_control_token(
    kind: str, template: str
) -> None:
    """Beside the control token that became text nothing changes, to the last id."""
    made = TOKENIZERS[kind](TEMPLATES[template])
    turns = [("user", "Say the\n\nword"), ("assistant", "the word"), ("user", "the </s>")]
    ids = Prompts(made).prepare(chat(*turns)).ids
    plain = Prompts(made).prepare(chat(*turns[:-1], ("user", "the x/sx"))).ids
    odd = [at for at, (one, other) in enumerate(zip(ids, plain, strict=True)) if one != other]
    assert len(odd) == 2


def test_reasoning_that_a_template_leaves_out_is_left_out() -> None:
    made = byte_level(REASONS, special=False)
    turns = [
        ("user", "</think> is a tag"),
        ("assistant", "<think>hm</think>Yes"),
        ("user", "<|im_end|> and?"),
    ]
    ids = Prompts(made).prepare(chat(*turns)).ids
    assert made.decode(ids) == (
        "<|im_start|>user\n</think> is a tag<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
        "<|im_start|>user\n<|im_end|> and?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert markers_in(made, ids) == ["<|im_start|>", "<|im_end|>"] * 3 + ["<|im_start|>"]


def test_raw_prompts_are_the_callers_program() -> None:
    made = byte_level(CHATML)
    job = Job(
        request_id="r", model="m", reply_to="q", created=0, prompt="<|im_start|>user\nHi<|im_end|>"
    )
    assert markers_in(made, Prompts(made).prepare(job).ids) == ["<s>", "<|im_start|>", "<|im_end|>"]


def test_delivered_text_is_text() -> None:
    made = byte_level(CHATML)
    prompts = Prompts(made)
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
    made = tokenizer()
    made.add_tokens(
        [AddedToken(f"<unused{number}>", special=True, normalized=False) for number in range(3000)]
    )
    control, marks = ControlTokens(made), Marks()
    text = "".join(f"<unused{number}> and " for number in range(3000))
    marked = control.marked(text, marks)
    assert marks.restored(marked) == text
    assert max(control.encode(marked, marks)) < 259


def test_a_text_made_of_beginnings_of_control_tokens_costs_little() -> None:
    made = tokenizer()
    made.add_tokens(
        [AddedToken(f"<unused{number}>", special=True, normalized=False) for number in range(6000)]
    )
    control = ControlTokens(made)
    began = time.process_time()
    control.occur_in(["<unused" * 100_000, "<" * 500_000])
    assert time.process_time() - began < 5


# ---- stops


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_stop_that_is_a_token_is_known_by_its_id(kind: str) -> None:
    made = TOKENIZERS[kind](GEMMA)
    ids = Prompts(made).stop_tokens(("<end_of_turn>", "and", "</s>"))
    assert ids == {made.convert_tokens_to_ids("<end_of_turn>"), made.eos_token_id}


# ---- every dialogue fits

ROLES = list(get_args(Role))
dialogues = some.lists(
    some.tuples(some.sampled_from(ROLES), some.sampled_from(["", "a", "b", "c d"])),
    min_size=1,
    max_size=9,
)


@settings(max_examples=200, deadline=None)
@given(dialogues)
def test_every_dialogue_has_a_form_that_the_strictest_template_takes(
    turns: list[tuple[str, str]],
) -> None:
    for template in (GEMMA, CHATML, INST, None):
        made = byte_level(template)
        text = made.decode(Prompts(made).prepare(chat(*turns)).ids)
        for role, content in turns:
            if role != "assistant" or content:
                assert content in text


@settings(max_examples=200, deadline=None)
@given(dialogues)
def test_the_strictest_form_alternates_and_says_everything(turns: list[tuple[str, str]]) -> None:
    messages = chat(*turns).messages or ()
    *_, strictest = forms(messages)
    assert [turn.role for turn in strictest] == (["user", "assistant"] * len(strictest))[
        : len(strictest)
    ]
    said = "".join(turn.content for turn in strictest)
    for message in messages:
        assert message.content.strip() in said


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        ([("user", "A"), ("user", "B")], "user\nA\n\nB<end_of_turn>"),
        ([("user", "A"), ("assistant", ""), ("user", "B")], "user\nA\n\nB<end_of_turn>"),
        (
            [("assistant", "Hello"), ("user", "B")],
            "user\n<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>",
        ),
        ([("system", "S"), ("system", "T"), ("user", "A")], "user\nS\n\nT\n\nA<end_of_turn>"),
        (
            [("user", "A"), ("assistant", "B"), ("system", "S"), ("user", "C")],
            "model\nB<end_of_turn>\n<start_of_turn>user\nS\n\nC",
        ),
        (
            [("system", "S"), ("assistant", "B"), ("user", "C")],
            "user\nS<end_of_turn>\n<start_of_turn>model\nB<end_of_turn>",
        ),
    ],
)
def test_what_becomes_of_a_dialogue(turns: list[tuple[str, str]], text: str) -> None:
    made = byte_level(GEMMA)
    assert text in made.decode(Prompts(made).prepare(chat(*turns)).ids)


def test_a_template_that_takes_a_dialogue_gets_it_as_it_is() -> None:
    made = byte_level(CHATML)
    ids = Prompts(made).prepare(chat(("user", "A"), ("user", "B"), ("system", "S"))).ids
    assert made.decode(ids).startswith(
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n<|im_start|>system"
    )


def test_a_template_that_leaves_the_system_out_gets_it_in_the_first_turn() -> None:
    made = byte_level(INST)
    ids = Prompts(made).prepare(chat(("system", "Be kind."), ("user", "Hi"))).ids
    assert made.decode(ids) == "<s>[INST] Be kind.\n\nHi [/INST]"


def test_thousands_of_system_turns_are_one_piece_of_work() -> None:
    prompts = Prompts(byte_level(GEMMA))
    began = time.process_time()
    made = prompts.prepare(
        chat(*[("system", f"rule {number}") for number in range(5000)], ("user", "Hi"))
    )
    assert time.process_time() - began < 5
    assert len(made.ids) > 50_000
    assert leading_systems(chat(*[("system", "S")] * 3).messages or ()) == 3


# ---- how long


class Counting:
    """A tokenizer that says how much it was given."""

    def __init__(self, made: Any) -> None:
        self._made = made
        self.characters = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)

    def __call__(self, text: Any, **how: Any) -> Any:
        self.characters += sum(map(len, text)) if isinstance(text, list) else len(text)
        return self._made(text, **how)


@pytest.mark.parametrize("template", [CHATML, None])
def test_what_is_far_too_long_is_not_read_to_its_end(template: str | None) -> None:
    counting = Counting(byte_level(template))
    prompts = Prompts(counting, 1000)
    for job in (chat(("user", "x" * 1_000_000)), chat(*[("user", "x")] * 5000)):
        counting.characters = 0
        with pytest.raises(EngineError, match="more than 999") as caught:
            prompts.prepare(job)
        assert caught.value.code == "too_long"
        assert counting.characters <= 20_000


def test_measuring_piece_by_piece_refuses_nothing_that_fits() -> None:
    made = byte_level(None)
    job = Job(request_id="r", model="m", reply_to="q", created=0, prompt="日" * 20_000)
    assert len(Prompts(made, 60_001).prepare(job).ids) == 60_001


# ---- leaving out the oldest turns


def long_chat(count: int, *, system: int = 0, size: int = 20) -> list[tuple[str, str]]:
    turns = [("system", f"s{number}") for number in range(system)]
    for number in range(count):
        turns.append(("assistant" if number % 2 else "user", f"{number:03d}" + "x" * (size - 3)))
    return turns


@settings(max_examples=60, deadline=None)
@given(
    some.integers(1, 60),
    some.integers(0, 2),
    some.integers(3, 60),
    some.integers(100, 900),
    some.none() | some.integers(1, 300),
    some.sampled_from([CHATML, GEMMA, None]),
)
def test_a_dialogue_is_cut_to_what_fits(
    count: int, system: int, size: int, context: int, max_tokens: int | None, template: str | None
) -> None:
    made = byte_level(template)
    prompts = Prompts(made, context)
    turns = long_chat(count, system=system, size=size)
    room = max(1, min(max_tokens or context, context // 4))
    try:
        cut = prompts.prepare(chat(*turns, truncate=True, max_tokens=max_tokens))
    except EngineError as error:
        assert error.code == "too_long"
        return
    kept = turns[:system] + turns[system + cut.omitted :]
    assert kept[-1] == turns[-1]
    assert cut.ids == Prompts(made).prepare(chat(*kept)).ids
    if len(kept) > system + 1:
        assert len(cut.ids) <= context - room
        assert kept[system][0] == "user" or not cut.omitted
    if cut.omitted:  # one exchange more would not have fitted
        more = turns[:system] + turns[max(system, system + cut.omitted - 2 + cut.omitted % 2) :]
        assert len(Prompts(made).prepare(chat(*more)).ids) > context - room
    again = prompts.prepare(chat(*turns, truncate=True, max_tokens=max_tokens, delivered="xyz"))
    assert (again.omitted, again.delivered) == (cut.omitted, 3 + (template is None))


def test_without_truncate_it_is_refused() -> None:
    prompts = Prompts(byte_level(CHATML), 300)
    with pytest.raises(EngineError, match="299"):
        prompts.prepare(chat(*long_chat(200, size=200)))


def test_the_newest_turn_alone_may_take_all_but_a_token() -> None:
    prompts = Prompts(byte_level(CHATML), 300)
    alone = len(prompts.prepare(chat(("user", "x"))).ids) - 1
    made = prompts.prepare(chat(*long_chat(6), ("user", "y" * (299 - alone)), truncate=True))
    assert (made.omitted, len(made.ids)) == (6, 299)


def test_a_dialogue_of_thousands_of_tiny_turns_is_cut_with_few_renderings() -> None:
    made = byte_level(CHATML)
    prompts = Prompts(made, 4000)
    renderings = 0
    apply = made.apply_chat_template

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal renderings
        renderings += 1
        return apply(*args, **kwargs)

    made.apply_chat_template = counted
    cut = prompts.prepare(chat(*[("user", "x")] * 20_001, truncate=True))
    assert cut.omitted > 10_000
    assert renderings < 30
