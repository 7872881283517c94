"""Vectors from a model that generates, against the library's hidden states."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers

from broker.wire import Job, Pooling
from tests.unit.engine.engine_runs import job as text_job
from tests.unit.engine.engine_runs import read, reading, started
from tests.unit.engine.pages import look_a_step_later, use_pages
from tests.unit.engine.tiny import CONFIGS, save_model
from worker.engines.base import Engine, InvalidRequest, PromptTooLong

TEXTS = ("A tree", "Ünïcödé 日本語 😀", "a long text " * 20, "x")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny matrices gain nothing from a second core."""
    monkeypatch.setenv("CANOPY_THREADS", "1")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[Engine]:
    running = await started(folder, slots=4)
    yield running
    await running.stop()


def job(*inputs: str | tuple[int, ...], delivered_inputs: int = 0, **fields: Any) -> Job:
    return Job(
        request_id="r",
        model="tiny",
        reply_to="q",
        created=0.0,
        task="embed",
        pooling=Pooling(inputs=inputs, **fields),
        delivered_inputs=delivered_inputs,
    )


async def vectors(engine: Engine, asked: Job) -> list[Any]:
    chunks = await read(engine, asked)
    rows = [row for chunk in chunks for row in chunk.rows]
    assert chunks[0].prompt_tokens
    assert chunks[-1].finish == "stop"
    return [numpy.frombuffer(row, dtype="<f4") for row in rows]


def states(folder: Path, text: str) -> Any:
    """The library's last hidden states [tokens, features]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        output = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    return output.hidden_states[-1][0].numpy()


@pytest.mark.parametrize("kind", CONFIGS)
async def test_vectors_are_those_of_the_library(kind: str, tmp_path: Path) -> None:
    folder = save_model(kind, tmp_path / kind)
    engine = await started(folder, slots=2)
    if "embed" not in engine.tasks:  # computed the library's way: refused by name
        with pytest.raises(InvalidRequest, match="does not embed"):
            await read(engine, job("x"))
        await engine.stop()
        return
    last = await vectors(engine, job(*TEXTS, normalize=False))
    mean = await vectors(engine, job(*TEXTS, normalize=False, mode="mean"))
    for number, text in enumerate(TEXTS):
        expected = states(folder, text)
        numpy.testing.assert_allclose(last[number], expected[-1], atol=1e-4)
        numpy.testing.assert_allclose(mean[number], expected.mean(axis=0), atol=1e-4)
    await engine.stop()


async def test_over_pages_of_memory_as_a_gpu_has_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for two texts, beside answers that take it from them."""
    use_pages(monkeypatch, 640)
    look_a_step_later(monkeypatch)
    engine = await started(folder, slots=4)
    answers = [read(engine, text_job("Once", max_tokens=120, seed=3)) for _ in range(2)]
    found = [vectors(engine, job(*TEXTS, normalize=False, mode=mode)) for mode in ("last", "mean")]
    *_, last, mean = await asyncio.gather(*answers, *found)
    for number, text in enumerate(TEXTS):
        expected = states(folder, text)
        numpy.testing.assert_allclose(last[number], expected[-1], atol=1e-4)
        numpy.testing.assert_allclose(mean[number], expected.mean(axis=0), atol=1e-4)
    await engine.stop()


async def test_vectors_have_unit_length_unless_asked_otherwise(engine: Engine) -> None:
    [whole] = await vectors(engine, job("A tree"))
    [short] = await vectors(engine, job("A tree", dimensions=8))
    assert numpy.linalg.norm(whole) == pytest.approx(1, abs=1e-5)
    assert numpy.linalg.norm(short) == pytest.approx(1, abs=1e-5)
    numpy.testing.assert_allclose(short, whole[:8] / numpy.linalg.norm(whole[:8]), atol=1e-5)


async def test_usage_counts_all_inputs_and_another_node_goes_on(engine: Engine) -> None:
    counts = [(await read(engine, job(text)))[-1].prompt_tokens for text in TEXTS]
    assert (await read(engine, job(*TEXTS)))[-1].prompt_tokens == sum(counts)
    whole = await vectors(engine, job(*TEXTS))
    rest = await vectors(engine, job(*TEXTS, delivered_inputs=2))
    numpy.testing.assert_allclose(rest, whole[2:], atol=1e-5)


async def test_tokens_and_cut_texts(folder: Path, engine: Engine) -> None:
    ids = transformers.AutoTokenizer.from_pretrained(folder)("A tree")["input_ids"]
    [text], [tokens] = await vectors(engine, job("A tree")), await vectors(engine, job(tuple(ids)))
    numpy.testing.assert_allclose(text, tokens, atol=1e-6)
    [cut] = await vectors(engine, job("A tree and more", truncate=len(ids)))
    numpy.testing.assert_allclose(cut, text, atol=1e-6)
    await vectors(engine, job("word " * 5000, truncate=-1))


REFUSED = [
    (job("word " * 5000), "tokens"),
    (job((10**6,)), "no token"),
    (job("x", mode="cls"), "^pooling: .*last.*mean"),
    (job("x", prompt_name="query"), "^prompt_name"),
    (job("x", dimensions=4096), "^dimensions"),
]


@pytest.mark.parametrize(("asked", "reason"), REFUSED)
async def test_what_is_refused(engine: Engine, asked: Job, reason: str) -> None:
    with pytest.raises((InvalidRequest, PromptTooLong), match=reason):
        await read(engine, asked)
    assert await vectors(engine, job("x"))  # the engine works on


async def test_answers_go_on_beside_vectors(engine: Engine) -> None:
    """Each gets what it would get alone."""
    alone = "".join(chunk.text for chunk in await read(engine, text_job("Once", max_tokens=60)))
    expected = await vectors(engine, job(*TEXTS))
    answers = [read(engine, text_job("Once", max_tokens=60)) for _ in range(2)]
    *told, found = await asyncio.gather(*answers, vectors(engine, job(*TEXTS)))
    for chunks in told:
        assert "".join(chunk.text for chunk in chunks) == alone
    numpy.testing.assert_allclose(found, expected, atol=1e-5)


async def test_a_reader_that_leaves_frees_the_slot(engine: Engine) -> None:
    tasks = [await reading(engine, job(*["word " * 60] * 200)) for _ in range(engine.slots)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await vectors(engine, job("x"))
