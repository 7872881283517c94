"""The encoder engine, beside the sentence-transformers library on the same files."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from broker.wire import Job, Pooling, Task
from tests.unit.engine.encoders import (
    CONFIGS,
    save_cross_encoder,
    save_embedder,
    save_encoder,
    write,
)
from worker.engines import create, tasks
from worker.engines.base import (
    Chunk,
    Engine,
    EngineError,
    EngineStopped,
    EngineUnavailable,
    InvalidRequest,
    PromptTooLong,
)

TEXTS = ["a tree", "", "the root of a tall tree, and what grows below it", "Ünïcode 🌳", "b" * 90]
MEAN = {"pooling_mode_mean_tokens": True}
CLOSE = 1e-5


@asynccontextmanager
async def serving(folder: Path, task: str = "auto", slots: int = 4) -> AsyncIterator[Engine]:
    engine = create(
        "transformers",
        model="tiny",
        model_path=str(folder),
        device="cpu",
        slots=slots,
        token_delay=0,
        task=task,
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def job(
    *inputs: str | tuple[int, ...], task: Task = "embed", delivered: int = 0, **settings: Any
) -> Job:
    return Job(
        request_id="r",
        model="tiny",
        reply_to="q",
        created=0,
        task=task,
        pooling=Pooling(inputs=inputs, **settings),
        delivered_inputs=delivered,
    )


async def read_all(run: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in run]


async def chunks(engine: Engine, item: Job) -> list[Chunk]:
    return await read_all(engine.run(item))


async def vectors(engine: Engine, item: Job) -> numpy.ndarray[Any, Any]:
    rows = [row for chunk in await chunks(engine, item) for row in chunk.rows]
    return numpy.array([numpy.frombuffer(row, "<f4") for row in rows])


def close(found: Any, expected: Any) -> bool:
    return found.shape == expected.shape and bool(numpy.abs(found - expected).max() < CLOSE)


async def agrees(folder: Path, texts: Sequence[str] = TEXTS, **settings: Any) -> None:
    """The library's `encode` gives the same vectors."""
    library = SentenceTransformer(str(folder), device="cpu")
    async with serving(folder) as engine:
        found = await vectors(engine, job(*texts, **settings))
    assert close(found, library.encode(list(texts), **settings))


# ---- the same vectors as the library's


@pytest.mark.parametrize("kind", sorted(CONFIGS))
async def test_architectures(kind: str, tmp_path: Path) -> None:
    pooling = {"pooling_mode_lasttoken": True} if kind == "qwen3" else MEAN
    await agrees(save_embedder(kind, tmp_path, pooling=pooling, normalize=True))


@pytest.mark.parametrize(
    "mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
)
async def test_pooling_modes(mode: str, tmp_path: Path) -> None:
    await agrees(save_embedder("bert", tmp_path, pooling={"pooling_mode": mode}))


async def test_pooling_modes_are_joined(tmp_path: Path) -> None:
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}
    await agrees(save_embedder("bert", tmp_path, pooling=pooling))


@pytest.mark.parametrize("activation", ["Tanh", "ReLU"])
async def test_dense_layers(activation: str, tmp_path: Path) -> None:
    path = f"torch.nn.modules.activation.{activation}"
    await agrees(save_embedder("mpnet", tmp_path, pooling=MEAN, dense=path, normalize=True))


@pytest.mark.parametrize("pools_prompt", [True, False])
async def test_prompts(pools_prompt: bool, tmp_path: Path) -> None:
    pooling = {**MEAN, "include_prompt": pools_prompt}
    prompts = {"query": "find what answers: ", "document": "say: "}
    folder = save_embedder(
        "bert", tmp_path, pooling=pooling, prompts=prompts, default_prompt_name="document"
    )
    texts = ["a tree", "a leaf"]
    await agrees(folder, texts)
    await agrees(folder, texts, prompt_name="query")
    await agrees(folder, texts, prompt="another: ")


async def test_lower_case(tmp_path: Path) -> None:
    folder = save_embedder("bert", tmp_path, pooling=MEAN)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": True})
    await agrees(folder, ["A TREE", "a tree"])


async def test_an_encoder_without_the_librarys_files_is_pooled_as_it_does(tmp_path: Path) -> None:
    folder = save_encoder("modernbert", tmp_path)
    library = SentenceTransformer(str(folder), device="cpu")
    async with serving(folder) as engine:
        found = await vectors(engine, job(*TEXTS))
        plain = await vectors(engine, job(*TEXTS, normalize=False))
    assert close(found, library.encode(TEXTS, normalize_embeddings=True))
    assert close(plain, library.encode(TEXTS))


async def test_dimensions_are_cut_and_normalized_again(tmp_path: Path) -> None:
    folder = save_embedder("bert", tmp_path, pooling=MEAN, normalize=True)
    library = SentenceTransformer(str(folder), device="cpu", truncate_dim=8)
    async with serving(folder) as engine:
        found = await vectors(engine, job(*TEXTS, dimensions=8))
        with pytest.raises(InvalidRequest, match="have 32, not 33"):
            await vectors(engine, job("a", dimensions=33))
    assert close(found, library.encode(TEXTS, normalize_embeddings=True))


async def test_a_decoder_embeds_by_its_last_token_if_told_to(tmp_path: Path) -> None:
    folder = save_encoder("qwen3", tmp_path)
    async with serving(folder, "embed") as engine:
        last = await vectors(engine, job(*TEXTS))
        mean = await vectors(engine, job(*TEXTS, mode="mean"))
    write(folder / "1_Pooling" / "config.json", {})
    for mode, found in (("lasttoken", last), ("mean", mean)):
        other = folder / mode
        save_embedder("qwen3", other, pooling={"pooling_mode": mode}, normalize=True)
        assert close(found, SentenceTransformer(str(other), device="cpu").encode(TEXTS))


# ---- scores


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
@pytest.mark.parametrize("activation", ["", "torch.nn.modules.linear.Identity"])
async def test_scores(kind: str, activation: str, tmp_path: Path) -> None:
    folder = save_cross_encoder(kind, tmp_path, activation)
    library = CrossEncoder(str(folder), device="cpu")
    async with serving(folder) as engine:
        assert engine.tasks == ("score",)
        one = await vectors(engine, job(*TEXTS, task="score", queries=("what grows?",)))
        each = await vectors(engine, job(*TEXTS, task="score", queries=tuple(reversed(TEXTS))))
    assert close(one[:, 0], library.predict([("what grows?", text) for text in TEXTS]))
    assert close(each[:, 0], library.predict(list(zip(reversed(TEXTS), TEXTS, strict=True))))


async def test_only_texts_are_scored(tmp_path: Path) -> None:
    async with serving(save_cross_encoder("bert", tmp_path)) as engine:
        with pytest.raises(InvalidRequest, match="documents\\[1\\]: must be a text"):
            await chunks(engine, job("a", (5, 6), task="score", queries=("q",)))


# ---- inputs


async def test_inputs_are_counted_and_come_in_order(tmp_path: Path) -> None:
    async with serving(save_embedder("bert", tmp_path, pooling=MEAN)) as engine:
        told = await chunks(engine, job("long " * 20, "a", (0, 70, 71, 2)))
        alone = [await vectors(engine, job(text)) for text in ("long " * 20, "a", (0, 70, 71, 2))]
    assert told[0].prompt_tokens == 102 + 3 + 4
    assert told[-1].finish == "stop"
    rows = [row for chunk in told for row in chunk.rows]
    found = numpy.array([numpy.frombuffer(row, "<f4") for row in rows])
    assert close(found, numpy.concatenate(alone))


async def test_a_continued_job_computes_what_is_missing(tmp_path: Path) -> None:
    async with serving(save_embedder("bert", tmp_path, pooling=MEAN)) as engine:
        whole = await vectors(engine, job(*TEXTS))
        rest = await chunks(engine, job(*TEXTS, delivered=3))
        nothing = await chunks(engine, job(*TEXTS, delivered=len(TEXTS)))
    assert rest[0].prompt_tokens == nothing[0].prompt_tokens > 0
    rows = [row for chunk in rest for row in chunk.rows]
    assert close(numpy.array([numpy.frombuffer(row, "<f4") for row in rows]), whole[3:])
    assert not any(chunk.rows for chunk in nothing)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (job("a", "b" * 200), r"input\[1\] has 202 tokens, and the model reads at most 128"),
        (job("a", (0, 999)), r"input\[1\]: there is no token 999, as this model has 260"),
        (job(()), r"input\[0\]: has no tokens"),
        (job("a", prompt_name="of"), "the model has no prompt 'of'; it has: none"),
    ],
)
async def test_inputs_are_refused_by_name(item: Job, words: str, tmp_path: Path) -> None:
    async with serving(save_embedder("bert", tmp_path, pooling=MEAN)) as engine:
        with pytest.raises(InvalidRequest, match=words):
            await chunks(engine, item)
        assert len(await vectors(engine, job("a"))) == 1


async def test_long_inputs_are_cut_if_the_request_says_so(tmp_path: Path) -> None:
    folder = save_embedder("bert", tmp_path, pooling=MEAN)
    library = SentenceTransformer(str(folder), device="cpu")
    async with serving(folder) as engine:
        found = await vectors(engine, job("b" * 200, truncate=-1))
        short = await vectors(engine, job("b" * 200, truncate=10))
        ids = await vectors(engine, job((0, 70, 71, 72, 2), truncate=2))
        with pytest.raises(PromptTooLong):
            await chunks(engine, job("b" * 200))
    assert close(found, library.encode(["b" * 200]))
    assert close(short, library.encode(["b" * 8]))
    assert ids.shape == (1, 32)


# ---- many jobs


async def test_jobs_share_batches_and_a_cancelled_one_leaves(tmp_path: Path) -> None:
    texts = [f"text {number} " + "x" * (number % 60) for number in range(300)]
    async with serving(save_embedder("bert", tmp_path, pooling=MEAN)) as engine:
        cancelled = asyncio.create_task(chunks(engine, job(*texts)))
        parts = [texts[start::3] for start in range(3)]
        running = [asyncio.create_task(vectors(engine, job(*part))) for part in parts]
        await asyncio.sleep(0)
        cancelled.cancel()
        found = await asyncio.gather(*running)
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        whole = await vectors(engine, job(*texts))
    for start, part in enumerate(found):
        assert close(part, whole[start::3])


async def test_an_input_that_fails_ends_its_job_alone(tmp_path: Path) -> None:
    async with serving(save_embedder("bert", tmp_path, pooling=MEAN)) as engine:
        weights = engine._encoder._model.model.get_input_embeddings().weight.data  # type: ignore[attr-defined]
        weights[200] = float("nan")
        good = asyncio.create_task(vectors(engine, job("a", "b")))
        with pytest.raises(EngineError, match=r"input\[1\]: the model computed NaN") as refused:
            await chunks(engine, job("a", (200, 200)))
        assert refused.value.isolated
        assert numpy.isfinite(await good).all()


async def test_a_batch_that_fails_is_computed_in_halves(tmp_path: Path) -> None:
    async with serving(save_embedder("bert", tmp_path, pooling=MEAN)) as engine:
        model = engine._encoder._model  # type: ignore[attr-defined]
        compute, sizes = model.compute, []

        def failing(items: Sequence[Any]) -> Any:
            sizes.append(len(items))
            if any(item.length == 7 for item in items):
                raise RuntimeError("not enough memory")
            return compute(items)

        model.compute = failing
        bad, good = await asyncio.gather(
            chunks(engine, job("fives")),
            vectors(engine, job("four", "seventh", "a")),
            return_exceptions=True,
        )
        assert isinstance(bad, EngineError) and bad.isolated and bad.retryable
        assert not isinstance(good, BaseException) and len(good) == 3


async def test_a_stopped_engine_says_so_and_starts_again(tmp_path: Path) -> None:
    async with serving(save_embedder("bert", tmp_path, pooling=MEAN)) as engine:
        async with aclosing(engine.run(job(*["x" * 100] * 2000))) as run:  # type: ignore[type-var]
            while not (await anext(run)).rows:
                pass
            await engine.stop()
            with pytest.raises(EngineStopped):
                await read_all(run)
        with pytest.raises(EngineStopped):
            await chunks(engine, job("a"))
        await engine.start()
        assert len(await vectors(engine, job("a"))) == 1


# ---- folders


@pytest.mark.parametrize(
    ("config", "modules", "task"),
    [
        ({"architectures": ["BertModel"], "model_type": "bert"}, False, "embed"),
        ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}, False, "generate"),
        ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}, True, "embed"),
        ({"architectures": ["BertForSequenceClassification"]}, True, "score"),
        ({"architectures": ["T5EncoderModel"], "model_type": "t5"}, False, "embed"),
        ([], False, "generate"),
    ],
)
def test_what_a_folder_is_for(config: Any, modules: bool, task: str, tmp_path: Path) -> None:
    write(tmp_path / "config.json", config)
    if modules:
        write(tmp_path / "modules.json", [])
    assert tasks.detect(tmp_path) == task


async def test_folders_that_cannot_be_served(tmp_path: Path) -> None:
    folder = save_embedder("bert", tmp_path / "a", pooling={"pooling_mode": "best"})
    for document, words in (
        ([{"path": "", "type": "x.CNN"}], "modules of the kind 'CNN' are not known here"),
        ([{"path": "../..", "type": "x.Pooling"}], "names a path outside"),
        ([{"type": "x.Pooling"}], "cannot be followed: KeyError"),
        ([{"path": "1_Pooling", "type": "x.Pooling"}], "the pooling mode 'best' is not known"),
        ([{"path": "2_Dense", "type": "x.Dense"}], "has no model.safetensors"),
    ):
        write(folder / "modules.json", document)
        with pytest.raises(EngineUnavailable, match=words):
            async with serving(folder):
                pass
    config = CONFIGS["bert"]()
    write(tmp_path / "b" / "config.json", {**config.to_dict(), "num_labels": 3})
    with pytest.raises(EngineUnavailable, match="there are: auto, generate"):
        tasks.choose("sort", folder)
