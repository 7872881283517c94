"""The transformers engine against `model.generate`, on tiny models of each architecture."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from broker.wire import ChatMessage, Job, Sampling
from tests.unit.engine.engine_runs import job, read, reading, started, text_of
from tests.unit.engine.tiny import CONFIGS, save_model
from worker.engines.base import Chunk, Engine, EngineError
from worker.engines.transformers.text.chat_template import dialogue

PROMPTS = [
    "Once upon a time, in a land far away, there lived a tiny model with random weights.",
    "Hi",
    "Ünïcödé 日本語 😀 text of several bytes a character",
    "a" * 120,
    "The quick brown fox",
]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny matrices gain nothing from a second core and lose much to handing runner."""
    monkeypatch.setenv("CANOPY_THREADS", "1")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
async def engine(folder: Path) -> Any:
    running = await started(folder, slots=4)
    yield running
    await running.stop()


def expected(folder: Path, prompts: list[str], length: int) -> list[str]:
    """What the library's own loop generates, one prompt at a time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        generated = model.generate(
            ids, max_new_tokens=length, do_sample=False, attention_mask=torch.ones_like(ids)
        )
        text = tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
        texts.append(text.rstrip("\ufffd"))
    return texts


@pytest.mark.parametrize("kind", CONFIGS)
async def test_greedy_equals_generate_while_rows_join_and_leave(kind: str, tmp_path: Path) -> None:
    folder = save_model(kind, tmp_path / kind)
    texts = dict(zip(PROMPTS, expected(folder, PROMPTS, 16), strict=True))
    engine = await started(folder, slots=3)
    free = asyncio.Semaphore(3)

    async def one(number: int, prompt: str) -> None:
        async with free:
            await asyncio.sleep(0.01 * (number % 3))
            length = 16 if number % 2 else 5 + number
            text = await text_of(engine, job(prompt, max_tokens=length))
            assert texts[prompt].startswith(text), (kind, prompt)
            assert length < 16 or text == texts[prompt]

    await asyncio.gather(
        *(one(number, prompt) for number, prompt in enumerate([*PROMPTS, *PROMPTS[:2]]))
    )
    await engine.stop()


async def test_an_engine_tells_what_its_model_takes(folder: Path, engine: Engine) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, precision = model.config, engine.footprint.precision
    if precision == "float32":  # quantized ones take less
        whole = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
        assert engine.footprint.weights == pytest.approx(whole, rel=0.05)
    assert engine.footprint.weights > 0
    head_size = config.hidden_size // config.num_attention_heads
    bytes_per_token = 4 * 2 * config.num_hidden_layers * config.num_key_value_heads * head_size
    assert engine.footprint.cache == (engine.slots + 1) * engine.context_length * bytes_per_token


async def test_a_long_prompt_is_read_in_pieces(folder: Path, engine: Engine) -> None:
    prompt = "words and words " * 25  # 400 tokens: two pieces
    assert await text_of(engine, job(prompt)) == expected(folder, [prompt], 20)[0]


async def test_seed_gives_the_same_text_in_any_company(engine: Engine) -> None:
    seeded = job("Tell me", temperature=1.0, seed=11, top_k=50, top_p=0.95, max_tokens=40)
    alone = await text_of(engine, seeded)
    others = [
        job(prompt, temperature=1.0, max_tokens=15 + n) for n, prompt in enumerate(PROMPTS[:3])
    ]
    first, *_ = await asyncio.gather(*(text_of(engine, item) for item in [seeded, *others]))
    assert first == alone
    assert alone != await text_of(engine, job("Tell me", temperature=1.0, seed=12, max_tokens=40))


async def test_counts_and_finish(engine: Engine) -> None:
    chunks = await read(engine, job("Hello", max_tokens=9))
    assert chunks[0].prompt_tokens == len("Hello") + 1
    assert sum(chunk.tokens for chunk in chunks) == 9
    assert [chunk.finish for chunk in chunks if chunk.finish] == ["length"]
    assert chunks[-1].finish == "length"


async def test_stop_string_is_found_across_tokens_and_not_shown(engine: Engine) -> None:
    whole = await text_of(engine, job("Hello", max_tokens=30))
    stop = whole[8:11]
    chunks = await read(engine, job("Hello", max_tokens=30, stop=(stop,)))
    assert "".join(chunk.text for chunk in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].finish == "stop"


async def test_a_restarted_job_continues(engine: Engine) -> None:
    whole = await text_of(engine, job("Hello", max_tokens=30))
    given = whole[:10]
    chunks = await read(engine, job("Hello", max_tokens=30, delivered=given))
    assert given + "".join(chunk.text for chunk in chunks) == whole
    assert chunks[0].prompt_tokens == len("Hello") + 1
    assert sum(chunk.tokens for chunk in chunks) == 30


async def test_a_job_that_was_complete_when_its_node_died_just_ends(engine: Engine) -> None:
    assert await read(engine, job("Hello", max_tokens=3, delivered="abc")) == [
        Chunk(prompt_tokens=len("Hello") + 1, tokens=3),
        Chunk(finish="length"),
    ]


async def test_it_tells_how_long_a_context_is(engine: Engine) -> None:
    assert engine.context_length == 512


async def test_without_max_tokens_the_context_is_the_limit(engine: Engine) -> None:
    chunks = await read(engine, job("a" * 480, max_tokens=None))
    assert chunks[-1].finish in ("length", "stop")
    assert 481 + sum(chunk.tokens for chunk in chunks) <= 512


async def test_too_long_says_both_numbers(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"601.*511") as caught:
        await read(engine, job("a" * 600))
    assert caught.value.code == "too_long"
    assert not caught.value.retryable


async def test_closing_the_iterator_frees_the_slot(engine: Engine) -> None:
    runs = [engine.run(job(prompt, max_tokens=400, temperature=1.0)) for prompt in PROMPTS[:4]]
    for run in runs:
        await anext(run)
    for run in runs:
        await run.aclose()
    assert (
        len(
            await asyncio.gather(
                *(read(engine, job(prompt, max_tokens=3)) for prompt in PROMPTS[:4])
            )
        )
        == 4
    )
    assert all(row.finished for row in engine._decoder._scheduler.unfinished())  # type: ignore[attr-defined]


async def test_cancelling_the_reader_frees_the_slot(engine: Engine) -> None:
    readers = [await reading(engine, job("go on", max_tokens=400)) for _ in range(4)]
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    assert await text_of(engine, job("Hi", max_tokens=3))


async def test_more_runs_than_slots_are_refused(engine: Engine) -> None:
    runs = [engine.run(job("x", max_tokens=400)) for _ in range(4)]
    for run in runs:
        await anext(run)
    with pytest.raises(EngineError, match="slots"):
        await anext(engine.run(job("x")))
    for run in runs:
        await run.aclose()


async def test_a_chat_without_template_is_a_dialogue(engine: Engine) -> None:
    messages = (ChatMessage(role="user", content="Hi"),)
    item = Job(
        request_id="r",
        model="tiny",
        reply_to="q",
        created=0,
        messages=messages,
        sampling=Sampling(max_tokens=5),
    )
    chunks = await read(engine, item)
    assert chunks[0].prompt_tokens == 1 + len(dialogue(messages))
    assert not "".join(chunk.text for chunk in chunks).startswith(" ")
