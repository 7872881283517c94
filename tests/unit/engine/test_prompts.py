"""Prompts: every dialogue fits the template, and what is too long costs little."""

import time
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from broker.wire import Job, Role
from tests.unit.engine.chat_tokenizers import CHATML, GEMMA, INST, byte_level, chat
from worker.engines.base import EngineError
from worker.engines.transformers.text.chat_format import OURS
from worker.engines.transformers.text.chat_template import Prompts
from worker.engines.transformers.text.descriptions import STYLES
from worker.engines.transformers.text.dialogue import forms, leading_systems

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
        tokenizer = byte_level(template)
        text = tokenizer.decode(Prompts(tokenizer).prepare(chat(*turns)).ids)
        for role, content in turns:
            if role != "assistant" or content:
                assert content in text


@settings(max_examples=200, deadline=None)
@given(dialogues)
def test_the_strictest_form_alternates_and_says_everything(turns: list[tuple[str, str]]) -> None:
    messages = STYLES[OURS].plain(chat(*turns).messages or ())  # where there are no tools
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
    tokenizer = byte_level(GEMMA)
    assert text in tokenizer.decode(Prompts(tokenizer).prepare(chat(*turns)).ids)


def test_a_template_that_takes_a_dialogue_gets_it_as_it_is() -> None:
    tokenizer = byte_level(CHATML)
    ids = Prompts(tokenizer).prepare(chat(("user", "A"), ("user", "B"), ("system", "S"))).ids
    assert tokenizer.decode(ids).startswith(
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n<|im_start|>system"
    )


def test_a_template_that_leaves_the_system_out_gets_it_in_the_first_turn() -> None:
    tokenizer = byte_level(INST)
    ids = Prompts(tokenizer).prepare(chat(("system", "Be kind."), ("user", "Hi"))).ids
    assert tokenizer.decode(ids) == "<s>[INST] Be kind.\n\nHi [/INST]"


def test_thousands_of_system_turns_are_one_piece_of_work() -> None:
    prompts = Prompts(byte_level(GEMMA))
    began = time.process_time()
    prompt = prompts.prepare(
        chat(*[("system", f"rule {number}") for number in range(5000)], ("user", "Hi"))
    )
    assert time.process_time() - began < 5
    assert len(prompt.ids) > 50_000
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
    tokenizer = byte_level(None)
    job = Job(request_id="r", model="m", reply_to="q", created=0, prompt="日" * 20_000)
    assert len(Prompts(tokenizer, 60_001).prepare(job).ids) == 60_001


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
    tokenizer = byte_level(template)
    prompts = Prompts(tokenizer, context)
    turns = long_chat(count, system=system, size=size)
    room = max(1, min(max_tokens or context, context // 4))
    try:
        cut = prompts.prepare(chat(*turns, truncate=True, max_tokens=max_tokens))
    except EngineError as error:
        assert error.code == "too_long"
        return
    kept = turns[:system] + turns[system + cut.omitted :]
    assert kept[-1] == turns[-1]
    assert cut.ids == Prompts(tokenizer).prepare(chat(*kept)).ids
    if len(kept) > system + 1:
        assert len(cut.ids) <= context - room
        assert kept[system][0] == "user" or not cut.omitted
    if cut.omitted:  # one exchange more would not have fitted
        more = turns[:system] + turns[max(system, system + cut.omitted - 2 + cut.omitted % 2) :]
        assert len(Prompts(tokenizer).prepare(chat(*more)).ids) > context - room
    again = prompts.prepare(chat(*turns, truncate=True, max_tokens=max_tokens, delivered="xyz"))
    assert (again.omitted, again.delivered) == (cut.omitted, 3 + (template is None))


def test_an_answer_that_goes_on_at_the_end_of_the_context_gets_room() -> None:
    prompts = Prompts(byte_level(CHATML), 400)
    turns = [*long_chat(8, size=30), ("user", "and then?")]
    cut = prompts.prepare(chat(*turns, truncate=True))
    answer = "x" * (400 - len(cut.ids))  # up to the end of the context
    continued = prompts.prepare(chat(*turns, truncate=True, delivered=answer, max_tokens=1024))
    assert continued.delivered == len(answer)
    assert continued.omitted > cut.omitted
    assert len(continued.ids) <= 400 - 400 // 8
    last_words = prompts.prepare(
        chat(*turns, truncate=True, delivered=answer, max_tokens=len(answer) + 3)
    )
    assert len(last_words.ids) <= 400 - 3
    assert last_words.omitted <= continued.omitted


def test_without_truncate_it_is_refused() -> None:
    prompts = Prompts(byte_level(CHATML), 300)
    with pytest.raises(EngineError, match="299"):
        prompts.prepare(chat(*long_chat(200, size=200)))


def test_the_newest_turn_alone_may_take_all_but_a_token() -> None:
    prompts = Prompts(byte_level(CHATML), 300)
    alone = len(prompts.prepare(chat(("user", "x"))).ids) - 1
    prompt = prompts.prepare(chat(*long_chat(6), ("user", "y" * (299 - alone)), truncate=True))
    assert (prompt.omitted, len(prompt.ids)) == (6, 299)


def test_a_dialogue_of_thousands_of_tiny_turns_is_cut_with_few_renderings() -> None:
    tokenizer = byte_level(CHATML)
    prompts = Prompts(tokenizer, 4000)
    renderings = 0
    apply = tokenizer.apply_chat_template

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal renderings
        renderings += 1
        return apply(*args, **kwargs)

    tokenizer.apply_chat_template = counted
    cut = prompts.prepare(chat(*[("user", "x")] * 20_001, truncate=True))
    assert cut.omitted > 10_000
    assert renderings < 30
