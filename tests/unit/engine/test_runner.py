"""The runner gives the library's answers, whatever else is running, cached, copied or cancelled."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers
from structlog.testing import capture_logs

from tests.unit.engine.decoder_runs import Runs, job
from tests.unit.engine.pages import look_a_step_later, use_pages
from tests.unit.engine.tiny import CONFIGS, save_model, tokenizer
from worker.engines.base import Chunk, EngineError
from worker.engines.transformers.decoder import Decoder
from worker.engines.transformers.mailbox import Mailbox
from worker.engines.transformers.model.cache_size import CacheSize
from worker.engines.transformers.model.cuda_graphs import graph_size
from worker.engines.transformers.model.errors import UnsupportedModel
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.loader import load, prepare_model
from worker.engines.transformers.model.probe import create_runner
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.engines.transformers.model.step import PrefillChunk
from worker.engines.transformers.sequence import Sequence

PROMPTS = [
    "The quick brown fox",
    "Hi",
    "a" * 70,
    "Once upon a time, there was a model",
    "Ünïcödé 日本語 😀",
]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_THREADS", "1")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(params=["rows", "pages", "few pages"])
def runs(
    request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Runs]:
    """As on a CPU; as on a GPU, with blocks and the host a step ahead; and with so few blocks that
    sequences are preempted.
    """
    if request.param != "rows":
        use_pages(monkeypatch, 560 if request.param == "few pages" else None)
        look_a_step_later(monkeypatch)
    created = Runs(load(folder, "cpu", 3), 3)
    yield created
    assert created.decoder.stop(10)


@pytest.fixture(scope="session")
def by_library(folder: Path) -> Callable[[str, int], str]:
    """What the library's own loop generates."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    words = transformers.AutoTokenizer.from_pretrained(folder)

    def generate(prompt: str, length: int) -> str:
        ids = words(prompt, return_tensors="pt")["input_ids"]
        generated = model.generate(
            ids, max_new_tokens=length, do_sample=False, attention_mask=torch.ones_like(ids)
        )
        return str(
            words.decode(generated[0, ids.shape[1] :], skip_special_tokens=True).rstrip("\ufffd")
        )

    return generate


def test_ragged_prompts_answer_as_the_library_does(
    runs: Runs, by_library: Callable[[str, int], str]
) -> None:
    expected = [by_library(prompt, 24) for prompt in PROMPTS]
    assert runs.texts([job(prompt) for prompt in PROMPTS]) == expected


def test_a_conversation_is_not_read_twice(
    runs: Runs, by_library: Callable[[str, int], str]
) -> None:
    prompt = "Now then: " * 6
    for _ in range(3):
        lookups, reused = runs.decoder.reuse
        answer = by_library(prompt, 24)
        assert runs.texts([job(prompt)]) == [answer]
        more, again = runs.decoder.reuse
        first = lookups == 0
        assert (again - reused == 0) if first else (again - reused >= (more - lookups) - 12)
        prompt += answer + " Go on."


def test_a_prompt_that_is_being_read_is_shared(
    runs: Runs, by_library: Callable[[str, int], str]
) -> None:
    prompt = "a system prompt that is the same for all " * 4  # 165 tokens
    prompts = [prompt + word for word in ("one", "two", "three")]
    assert runs.texts([job(each) for each in prompts]) == [by_library(each, 24) for each in prompts]
    asked, reused = runs.decoder.reuse
    assert reused >= 2 * 160 > asked - reused  # read once, copied twice


def test_a_seed_that_was_named_keeps_company_out(
    folder: Path, by_library: Callable[[str, int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prompt is not taken from the cache; steps with it have one batch shape."""
    loaded = load(folder, "cpu", 3)
    shapes: list[tuple[int, bool]] = []
    decode = LocalModelRunner.decode

    def noted(
        self: LocalModelRunner,
        slots: list[int],
        positions: list[int],
        *,
        batch_invariant: bool = False,
    ) -> torch.Tensor:
        shapes.append((len(slots), batch_invariant))
        return decode(self, slots, positions, batch_invariant=batch_invariant)

    monkeypatch.setattr(LocalModelRunner, "decode", noted)
    runs = Runs(loaded, 3)
    prompt = "a system prompt that is the same for all " * 4
    jobs = [job(prompt + word, seed=5, reproducible=True) for word in ("one", "two")]
    assert runs.texts(jobs) == [by_library(prompt + word, 24) for word in ("one", "two")]
    assert runs.decoder.reuse[1] == 0
    assert all(batch_invariant for _, batch_invariant in shapes)
    shapes.clear()
    runs.texts([job("Hi", max_tokens=40), job("Ho", seed=5, reproducible=True, max_tokens=10)])
    assert (2, True) in shapes
    assert (2, False) not in shapes
    assert shapes[-1] == (1, False)
    assert runs.decoder.stop(10)


@pytest.mark.parametrize(
    ("count", "usual", "fixed"), [(1, 1, 8), (3, 4, 8), (8, 8, 8), (9, None, None)]
)
def test_a_fixed_shape_is_the_largest(count: int, usual: int | None, fixed: int | None) -> None:
    assert graph_size([1, 2, 4, 8], count, batch_invariant=False) == usual
    assert graph_size([1, 2, 4, 8], count, batch_invariant=True) == fixed


def test_more_prompts_than_a_step_reads_at_once_are_all_answered(
    folder: Path, by_library: Callable[[str, int], str]
) -> None:
    runs = Runs(load(folder, "cpu", 40), 40)
    prompts = [f"{number} little ones" for number in range(40)]
    assert runs.texts([job(each, max_tokens=3) for each in prompts]) == [
        by_library(each, 3) for each in prompts
    ]
    assert runs.decoder.stop(10)


def test_a_wave_of_newcomers_is_taken_in_a_few_at_a_time(folder: Path) -> None:
    """The first are computed while the others get their slots."""
    decoder = Decoder(load(folder, "cpu", 2), 2, lambda _: None)
    for _ in range(140):
        decoder._prepared.put(Sequence(job("Hi"), Mailbox()))
    taken = []
    for _ in range(3):
        assert decoder._receive()
        taken.append(len(decoder._scheduler.unfinished()))
    assert taken == [64, 128, 140]


def test_a_short_prompt_does_not_wait_for_a_long_one(folder: Path) -> None:
    runs = Runs(msgspec.structs.replace(load(folder, "cpu", 2), prefill_tokens=4), 2)
    long, short = runs.submit(job("a" * 450, max_tokens=1)), runs.submit(job("Hi", max_tokens=1))
    runs.until(lambda: runs.ended(short))
    assert not runs.ended(long)
    runs.until(lambda: runs.ended(long))
    assert runs.decoder.stop(10)


def test_what_was_withdrawn_leaves_a_slot_that_is_right(
    runs: Runs, by_library: Callable[[str, int], str]
) -> None:
    for _ in range(3):
        long = [
            runs.submit(job(prompt, max_tokens=400, temperature=1.0, seed=1))
            for prompt in PROMPTS[:3]
        ]
        runs.until(
            lambda long=long: all(len(runs.outputs[sequence.mailbox]) > 3 for sequence in long)
        )
        for sequence in long:
            sequence.cancel()
        assert runs.texts([job(prompt) for prompt in PROMPTS]) == [
            by_library(prompt, 24) for prompt in PROMPTS
        ]


def test_what_does_not_fit_is_preempted_and_computed_again(
    folder: Path, by_library: Callable[[str, int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pages(monkeypatch, 560)
    look_a_step_later(monkeypatch)
    runs = Runs(load(folder, "cpu", 8), 8)
    prompts = [letter * 40 for letter in "abcdefgh"]  # 8 x 140 tokens in the end
    with capture_logs() as lines:
        texts = runs.texts([job(prompt, max_tokens=100) for prompt in prompts])
    assert texts == [by_library(prompt, 100) for prompt in prompts]
    preempted = [line for line in lines if line["event"] == "preempted"]
    assert 1 <= len(preempted) <= 16  # nobody goes in circles
    expected = job("once more", temperature=1.2, seed=11, max_tokens=60)
    [alone] = runs.texts([expected])
    others = [job(prompt, max_tokens=100) for prompt in prompts]
    assert runs.texts([*others[:4], expected, *others[4:]])[4] == alone
    assert runs.decoder.stop(10)


def test_no_more_slots_are_reported_than_there_is_memory_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pages(monkeypatch, 1600)
    runs = Runs(load(folder, "cpu", 8), 8)
    for _ in range(30):  # so that it knows how long sequences are: 40 + 100 tokens
        runs.texts([job("a" * 39, max_tokens=100)])
    free = runs.decoder.usable_slots
    running = [runs.submit(job(letter * 39, max_tokens=100)) for letter in "abcd"]
    runs.until(lambda: all(len(runs.outputs[each.mailbox]) > 3 for each in running))
    busy = runs.decoder.usable_slots
    waiting = [runs.submit(job(letter * 300, max_tokens=100)) for letter in "efg"]
    runs.until(lambda: len(runs.outputs[waiting[0].mailbox]) > 1)
    crowded = runs.decoder.usable_slots
    runs.until(lambda: all(runs.ended(each) for each in [*running, *waiting]))
    assert min(free, busy) >= 7
    assert crowded == 7  # and one of them waits, so none is free
    assert runs.decoder.stop(10)


def test_a_prompt_that_waited_for_another_takes_no_slots(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pages(monkeypatch)
    runs = Runs(load(folder, "cpu", 8), 8)
    prompt = "a system prompt that is the same for all " * 4
    running = [runs.submit(job(prompt + word, max_tokens=200)) for word in ("one", "two")]
    runs.until(lambda: all(len(runs.outputs[each.mailbox]) > 3 for each in running))
    assert runs.decoder.usable_slots == 8
    runs.until(lambda: all(runs.ended(each) for each in running))
    assert runs.decoder.stop(10)


def test_the_context_is_used_to_its_last_token(runs: Runs) -> None:
    sequence = runs.submit(job("a" * 480, max_tokens=None, logit_bias={1: -100.0}))
    runs.until(lambda: runs.ended(sequence))
    chunks = [chunk for chunk in runs.outputs[sequence.mailbox] if isinstance(chunk, Chunk)]
    assert chunks[-1].finish == "length"
    assert chunks[0].prompt_tokens + sum(chunk.tokens for chunk in chunks) == 512


def test_the_same_seed_gives_the_same_text_in_any_company(runs: Runs) -> None:
    expected = job("Tell me", temperature=1.2, top_p=0.9, seed=11, max_tokens=40)
    [alone] = runs.texts([expected])
    others = [job(prompt, temperature=1.0, max_tokens=30) for prompt in PROMPTS]
    assert runs.texts([others[0], expected, *others[1:]])[1] == alone
    assert runs.texts([*others, expected])[-1] == alone


@pytest.mark.parametrize("at", [1, 2, 4, 7])
def test_a_step_that_fails_ends_its_rows_alone(
    at: int, runs: Runs, by_library: Callable[[str, int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = runs.decoder._loaded.model
    forward, calls = model.forward, 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", failing)
    first = runs.submit(job("Hello there"))
    runs.until(lambda: runs.ended(first))
    with pytest.raises(EngineError, match="out of memory") as caught:
        runs.text(first)
    assert caught.value.retryable
    assert runs.texts([job(prompt) for prompt in PROMPTS]) == [
        by_library(prompt, 24) for prompt in PROMPTS
    ]


def test_a_failure_while_reading_leaves_those_who_run(
    runs: Runs, by_library: Callable[[str, int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runs.decoder._loaded.runner
    assert runner is not None
    running = runs.submit(job("The quick brown fox", max_tokens=60))
    runs.until(lambda: len(runs.outputs[running.mailbox]) > 3)
    monkeypatch.setattr(runner, "prefill", _no_memory)
    late = runs.submit(job("Too late"))
    runs.until(lambda: runs.ended(late) and runs.ended(running))
    assert runs.text(running) == by_library("The quick brown fox", 60)
    with pytest.raises(EngineError, match="out of memory"):
        runs.text(late)


def _no_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_has_a_runner(kind: str) -> None:
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    runner = create_runner(model, KVCacheLayout(model), CacheSize(2, 64))
    assert (runner.slots, runner.context) == (2, 64)


def test_a_softcapped_attention_has_a_runner() -> None:
    config = transformers.Gemma2Config(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=6,
        attn_logit_softcapping=2.0, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    create_runner(model, KVCacheLayout(model), CacheSize(2, 64))


def test_a_wrong_answer_of_the_runner_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()
    decode = LocalModelRunner.decode
    monkeypatch.setattr(
        LocalModelRunner,
        "decode",
        lambda self, slots, at: decode(self, slots, [it - 1 for it in at]),
    )
    with pytest.raises(UnsupportedModel, match="differ"):
        create_runner(model, KVCacheLayout(model), CacheSize(2, 64))
    assert not any(hasattr(module, "key_cache") for module in model.modules())


def test_an_unsupported_model_is_computed_the_librarys_way_and_says_so() -> None:
    config = transformers.BloomConfig(
        vocab_size=259, hidden_size=32, n_layer=2, n_head=4, eos_token_id=1
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with capture_logs() as lines:
        loaded = prepare_model(model, tokenizer(), 2)
    assert loaded.runner is None
    [line] = [line for line in lines if line["event"] == "computed the library's way"]
    assert line["model"] == "BloomForCausalLM"
    made = Runs(loaded, 2)
    assert made.texts([job("Hi", max_tokens=4)])
    assert made.decoder.stop(10)


def test_the_operator_may_ask_for_the_librarys_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANOPY_LIBRARY_ATTENTION", "1")
    assert load(folder, "cpu", 2).runner is None


def test_slots_of_every_length_stay_apart() -> None:
    """Chunks of several prompts in one pass give what each gives alone."""
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["gemma3"]()).eval()
    runner = create_runner(model, KVCacheLayout(model), CacheSize(3, 64))
    prompts = [[5, 6, 7] * 10, [9] * 3, [11, 12] * 8]
    with torch.inference_mode():
        together = runner.prefill(
            [PrefillChunk(slot, 0, len(ids)) for slot, ids in enumerate(prompts)],
            prompts,
            [True] * 3,
        )
        for slot, ids in enumerate(prompts):
            half = len(ids) // 2
            runner.prefill([PrefillChunk(2 - slot, 0, half)], [ids[:half]], [False])
            alone = runner.prefill(
                [PrefillChunk(2 - slot, half, len(ids) - half)], [ids[half:]], [True]
            )
            torch.testing.assert_close(alone[0], together[slot], rtol=1e-4, atol=1e-4)


def test_what_a_broken_run_left_in_a_slot_harms_nobody() -> None:
    """A CPU reads a slot beyond its sequence. That is masked, but 0 times NaN is NaN."""
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()
    runner = create_runner(model, KVCacheLayout(model), CacheSize(2, 64))
    long, short = list(range(3, 40)), [7, 8, 9]
    answers = []
    with torch.inference_mode():
        for broken in (False, True):
            runner.prefill([PrefillChunk(1, 0, len(long))], [long], [True])
            runner.feed(torch.tensor([5]))
            runner.decode([1], [len(long)])
            if broken:
                for module in runner._attention_modules:
                    module.key_cache[1, 2 : len(long) + 1] = torch.nan
                    module.value_cache[1, 2 : len(long) + 1] = torch.nan
            runner.prefill([PrefillChunk(1, 0, len(short))], [short], [True])
            runner.feed(torch.tensor([5]))
            answers.append(runner.decode([1], [len(short)]).clone())
    assert torch.equal(*answers)
    assert answers[0].isfinite().all()


def test_a_loaded_model_says_how_long_a_row_may_be(folder: Path) -> None:
    loaded = load(folder, "cpu", 2)
    assert loaded.runner is not None
    assert loaded.context == loaded.runner.context == 512
    assert msgspec.structs.replace(loaded, eos_token_ids=frozenset()).runner is loaded.runner
