"""What fails in the transformers engine: a step, a job, the thread, the model that is loaded."""

import asyncio
import re
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.engine.engine_runs import job, read, reading, started, text_of
from tests.unit.engine.tiny import save_model
from worker.engines import create
from worker.engines.base import Engine, EngineError, EngineUnavailable
from worker.engines.transformers import engine as transformers_engine
from worker.engines.transformers.errors import step_error
from worker.watchdog import Watchdog


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
    ("error", "message"),
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
async def test_what_is_told_of_a_failed_step(error: Exception, message: str) -> None:
    failure = step_error(error)
    assert re.match(message, str(failure))
    assert (failure.code, failure.retryable) == ("engine", True)


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
    stalled: asyncio.Future[float] = loop.create_future()
    dog = Watchdog(engine, 0.01, stalled.set_result)
    dog.start()
    assert await stalled > 0.01
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
