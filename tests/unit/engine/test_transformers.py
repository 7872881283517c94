"""The transformers engine against `model.generate`, on tiny models of each architecture."""

import asyncio
import re
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from broker.wire import ChatMessage, Job, Sampling
from tests.unit.engine.tiny import CONFIGS, save_model
from worker.engines import create
from worker.engines.base import Chunk, Engine, EngineError, EngineUnavailable
from worker.engines.transformers import engine as transformers_engine
from worker.engines.transformers.errors import step_error
from worker.engines.transformers.text.chat_template import dialogue
from worker.watchdog import Watchdog

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
    made = await started(folder, slots=4)
    yield made
    await made.stop()


async def started(folder: Path, slots: int) -> Engine:
    made = create(
        "transformers",
        model="tiny",
        model_path=str(folder),
        device="cpu",
        slots=slots,
        token_delay=0,
    )
    await made.start()
    return made


def job(prompt: str, **settings: Any) -> Job:
    delivered = settings.pop("delivered", "")
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 20, **settings})
    return Job(
        request_id="r",
        model="tiny",
        reply_to="q",
        created=0.0,
        prompt=prompt,
        sampling=sampling,
        delivered=delivered,
    )


async def read(engine: Engine, job: Job) -> list[Chunk]:
    return [chunk async for chunk in engine.run(job)]


async def reading(engine: Engine, job: Job) -> asyncio.Task[None]:
    """A task that reads the answer to its end; returns once the first chunk has come."""
    begun = asyncio.Event()

    async def run() -> None:
        async for _ in engine.run(job):
            begun.set()

    task = asyncio.create_task(run())
    await begun.wait()
    return task


async def text_of(engine: Engine, job: Job) -> str:
    return "".join(chunk.text for chunk in await read(engine, job))


def expected(folder: Path, prompts: list[str], length: int) -> list[str]:
    """What the library's own loop generates, one prompt at a time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made = model.generate(
            ids, max_new_tokens=length, do_sample=False, attention_mask=torch.ones_like(ids)
        )
        text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        texts.append(text.rstrip("\ufffd"))
    return texts


@pytest.mark.parametrize("kind", CONFIGS)
async def test_greedy_equals_generate_while_rows_join_and_leave(kind: str, tmp_path: Path) -> None:
    folder = save_model(kind, tmp_path / kind)
    wanted = dict(zip(PROMPTS, expected(folder, PROMPTS, 16), strict=True))
    engine = await started(folder, slots=3)
    free = asyncio.Semaphore(3)

    async def one(number: int, prompt: str) -> None:
        async with free:
            await asyncio.sleep(0.01 * (number % 3))
            length = 16 if number % 2 else 5 + number
            text = await text_of(engine, job(prompt, max_tokens=length))
            assert wanted[prompt].startswith(text), (kind, prompt)
            assert length < 16 or text == wanted[prompt]

    await asyncio.gather(
        *(one(number, prompt) for number, prompt in enumerate([*PROMPTS, *PROMPTS[:2]]))
    )
    await engine.stop()


async def test_a_long_prompt_is_read_in_pieces(folder: Path, engine: Engine) -> None:
    prompt = "words and words " * 25  # 400 tokens: two pieces
    assert await text_of(engine, job(prompt)) == expected(folder, [prompt], 20)[0]


async def test_seed_gives_the_same_text_in_any_company(engine: Engine) -> None:
    wanted = job("Tell me", temperature=1.0, seed=11, top_k=50, top_p=0.95, max_tokens=40)
    alone = await text_of(engine, wanted)
    others = [
        job(prompt, temperature=1.0, max_tokens=15 + n) for n, prompt in enumerate(PROMPTS[:3])
    ]
    first, *_ = await asyncio.gather(*(text_of(engine, item) for item in [wanted, *others]))
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


async def test_a_failing_step_fails_its_jobs_only(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = engine._decoder._loaded.model  # type: ignore[attr-defined]
    forward, calls = model.forward, 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise RuntimeError("NaN, say")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", failing)
    with pytest.raises(EngineError, match="the model failed: NaN") as caught:
        await read(engine, job("Hello"))
    assert caught.value.code == "engine"
    assert caught.value.retryable
    assert await text_of(engine, job("Hello"))


async def test_text_no_tokenizer_reads_fails_one_job_for_good(engine: Engine) -> None:
    other = await reading(engine, job("Hello", max_tokens=100))
    with pytest.raises(EngineError, match="cannot be read") as caught:
        await read(engine, job("half a pair \ud83d"))
    assert (caught.value.code, caught.value.retryable) == ("invalid", False)
    await other


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory: Default",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore"),
            r"out of memory: .* MiB\.$",
        ),
        (MemoryError(), "out of memory: MemoryError"),
        (IndexError("index out of range in self"), "the model failed: index"),
    ],
)
async def test_what_is_told_of_a_failed_step(error: Exception, told: str) -> None:
    made = step_error(error)
    assert re.match(told, str(made))
    assert (made.code, made.retryable) == ("engine", True)


async def test_it_starts_again_after_a_failure_and_never_holds_two_models(folder: Path) -> None:
    engine = await started(folder, slots=2)
    for _ in range(2):
        decoder = engine._decoder  # type: ignore[attr-defined]
        model = weakref.ref(decoder._loaded.model)
        decoder._loaded.model.forward = _fails
        del decoder
        with pytest.raises(EngineError, match="for good"):
            await text_of(engine, job("Hello"))
        await engine.stop()
        assert model() is None
        assert (engine.stuck, engine.warm) == (False, False)
        await engine.start()
        assert await text_of(engine, job("Hello"))
        assert engine.warm
    await engine.stop()


def _fails(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("for good")


async def test_a_step_that_hangs_is_seen_and_left_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_engine, "_STOP_SECONDS", 0.1)
    engine = await started(folder, slots=2)
    assert engine.stalled() == 0.0
    decoder = engine._decoder  # type: ignore[attr-defined]
    hanging, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def forward(*args: Any, **kwargs: Any) -> Any:
        loop.call_soon_threadsafe(hanging.set)
        release.wait()
        raise RuntimeError("released")

    monkeypatch.setattr(decoder._loaded.model, "forward", forward)
    begun = await reading(engine, job("x"))
    await hanging.wait()
    readers = [begun, asyncio.create_task(read(engine, job("not even looked at")))]
    told: asyncio.Future[float] = loop.create_future()
    dog = Watchdog(engine, 0.01, told.set_result)
    dog.start()
    assert await told > 0.01
    await dog.stop()
    stopping = asyncio.create_task(engine.stop())
    for reader in readers:
        with pytest.raises(EngineError, match="stopping") as caught:
            await reader
        assert caught.value.retryable
    await stopping
    assert engine.stuck
    with pytest.raises(EngineUnavailable, match="new process"):
        await engine.start()
    release.set()
    assert decoder.stop(10)


async def test_a_job_for_a_thread_that_died_is_told(engine: Engine) -> None:
    decoder = engine._decoder  # type: ignore[attr-defined]
    assert decoder.stop(10)
    with pytest.raises(EngineError, match="not running"):
        await read(engine, job("x"))
    assert engine.stalled() == 0.0


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


async def test_stop_ends_every_run(folder: Path) -> None:
    engine = await started(folder, slots=2)
    reader = await reading(engine, job("x", max_tokens=400))
    await engine.stop()
    with pytest.raises(EngineError, match="stopping"):
        await reader
    with pytest.raises(EngineError, match="not running"):
        await read(engine, job("x"))
    await engine.stop()


async def test_unavailable_says_why(tmp_path: Path, folder: Path) -> None:
    async def why(path: Path, device: str = "cpu") -> str:
        engine = create(
            "transformers", model="m", model_path=str(path), device=device, slots=1, token_delay=0
        )
        with pytest.raises(EngineUnavailable) as caught:
            await engine.start()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no model folder" in await why(tmp_path / "absent")
    assert "is not a model" in await why(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"not at all")
    assert "cannot load" in await why(tmp_path)
    assert "no such device" in await why(folder, "cuda:7")
    assert "no such device" in await why(folder, "toaster")


async def test_a_cut_off_weight_file_is_not_loaded(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineUnavailable, match="cannot load"):
        await started(tmp_path, slots=1)
    save_file({"stray": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(EngineUnavailable, match="weights"):
        await started(tmp_path, slots=1)
