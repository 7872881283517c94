"""What ends one answer, what ends a thread, and who hears of it."""

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from broker.wire import Interrupted, Job, Sampling
from tests.unit.engine.test_text import sentencepiece
from tests.unit.engine.tiny import save_model, tokenizer
from tests.unit.frame_readers import Told
from worker.engine_supervisor import EngineSupervisor
from worker.engines import create
from worker.engines.base import Chunk, Engine, EngineError, EngineStopped, InvalidRequest
from worker.engines.transformers import intake
from worker.engines.transformers.errors import sequence_error
from worker.engines.transformers.text import detokenizer as detokenize_module
from worker.engines.transformers.text.chat_template import Prompts
from worker.engines.transformers.text.detokenizer import Detokenizer, trailing_replacements
from worker.run import JobRun
from worker.rw_lock import ReadersWriterLock

BYTES = tokenizer()


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_THREADS", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(params=["slots", "rows"])
async def engine(
    request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    if request.param == "rows":
        monkeypatch.setenv("CANOPY_LIBRARY_ATTENTION", "1")
    running_engine = create(
        "transformers", model="tiny", model_path=str(folder), device="cpu", slots=3, token_delay=0
    )
    await running_engine.start()
    yield running_engine
    await running_engine.stop()


def job(prompt: str, **settings: Any) -> Job:
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 20, **settings})
    return Job(
        request_id="r", model="tiny", reply_to="q", created=0.0, prompt=prompt, sampling=sampling
    )


async def read(engine: Engine, item: Job) -> list[Chunk]:
    return [chunk async for chunk in engine.run(item)]


async def text_of(engine: Engine, item: Job) -> str:
    return "".join(chunk.text for chunk in await read(engine, item))


# ---- detokenising


def pieces(bytes_and_tokens: list[int | str]) -> list[int]:
    """Ids of the small vocabulary in test_text: single bytes, and named pieces."""
    names = ["<eos>", "▁the", "▁", "tree"]
    return [names.index(each) if isinstance(each, str) else 4 + each for each in bytes_and_tokens]


@pytest.mark.parametrize(
    ("prompt", "said", "text"),
    [
        ([0xE2, 0xAC, 0x82], [0xE2, "▁"], "\ufffd "),
        ([0xE2, 0xAC, 0x82], [0xFF, "tree"], "\ufffdtree"),
        (["tree"], [0xE2, 0xAC, "▁the", 0xE2, 0xAC, 0x82], "\ufffd\ufffd the⬂"),
        ([], [0xAC, 0xAC, "▁the", 0xF0], "\ufffd\ufffd the"),
        ([0xE2, 0xAC, 0x82], [0xE2, 0xAC, 0x82], "⬂"),
    ],
)
def test_bytes_that_make_no_character_are_shown_as_such(
    prompt: list[int | str], said: list[int | str], text: str
) -> None:
    stream = Detokenizer(sentencepiece(), pieces(prompt))
    assert "".join(stream.push(token) for token in pieces(said)) + stream.flush() == text


def test_any_order_of_bytes_and_pieces_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer ends as a whole text: after any garbage a word is read as ever."""
    tokenizer = sentencepiece()
    dice = torch.Generator().manual_seed(3)
    for _ in range(200):
        ids = torch.randint(0, 260, (12,), generator=dice).tolist()
        stream = Detokenizer(tokenizer, ids[:4])
        told = "".join(stream.push(token) for token in [*ids[4:], 1, 3])
        assert told.endswith(" thetree")
    monkeypatch.setattr(detokenize_module, "DecodeStream", _raises_always)
    stream = Detokenizer(tokenizer, [])
    assert "".join(stream.push(token) for token in pieces(["▁the", 0xE2, 0xAC, 0x82])) == " the⬂"


class _raises_always:
    def __init__(self, **_: Any) -> None: ...

    def step(self, *_: Any) -> str:
        raise RuntimeError("Invalid prefix encountered")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("a\ufffd", "a\ufffd"),
        ("\ufffd\ufffd", "\ufffd\ufffd"),
        ("a😀"[:1], "a"),
        ("\ufffd日", "\ufffd日"),
    ],
)
def test_a_replacement_character_of_the_models_own_is_kept(said: str, text: str) -> None:
    stream = Detokenizer(BYTES, [])
    ids = BYTES(said, add_special_tokens=False)["input_ids"]
    assert "".join(map(stream.push, ids)) + stream.flush() == text
    half = BYTES("😀", add_special_tokens=False)["input_ids"][:3]
    stream = Detokenizer(BYTES, [])
    assert "".join(map(stream.push, [*ids, *half])) + stream.flush() == text


@pytest.mark.parametrize(
    ("spelled", "count"),
    [
        (b"", 0),
        (b"a", 0),
        ("a\ufffd".encode(), 1),
        ("\ufffd\ufffd".encode(), 2),
        ("\ufffd".encode() + b"\xf0\x9f", 1),
    ],
)
def test_trailing_replacements(spelled: bytes, count: int) -> None:
    assert trailing_replacements(spelled) == count


# ---- stops


async def test_a_stop_that_is_a_special_token_stops(engine: Engine) -> None:
    """Its text is not seen, so only its id tells; here a bias makes the model say it."""
    mark = 2  # <|im_end|>
    before = await text_of(engine, job("Hello", max_tokens=5))
    said = {"logit_bias": {mark: 100.0}, "presence_penalty": 0.0}
    whole = await read(engine, job("Hello", **said, max_tokens=6))
    assert whole[-1].finish == "length"
    for stop in (("<|im_end|>",), ("never", "<|im_end|>", "x y")):
        chunks = await read(engine, job("Hello", **said, stop=stop))
        assert (chunks[-1].finish, "".join(chunk.text for chunk in chunks)) == ("stop", "")
    chunks = await read(engine, job("Hello", stop=("<|im_end|>",), max_tokens=5))
    assert "".join(chunk.text for chunk in chunks) == before


# ---- logits that are not numbers


async def test_logits_that_are_not_numbers_end_their_answer_alone(engine: Engine) -> None:
    """A prompt with a certain letter makes the model compute NaN; everybody else's answers are to
    the letter.
    """
    alone = [await text_of(engine, job(prompt)) for prompt in ("Hello", "Hi there")]
    model = engine._decoder._loaded.model  # type: ignore[attr-defined]
    letter = BYTES.convert_tokens_to_ids("~")
    weights = model.get_input_embeddings().weight.data
    kept = weights[letter].clone()
    weights[letter] = math.nan
    results = await asyncio.gather(
        *(text_of(engine, job(prompt)) for prompt in ("Hello", "a ~ b", "Hi there")),
        return_exceptions=True,
    )
    weights[letter] = kept
    assert [results[0], results[2]] == alone
    error = results[1]
    assert isinstance(error, EngineError)
    assert (error.code, error.retryable, error.isolated) == ("engine", True, True)
    assert "NaN or infinite" in str(error)
    assert "an answer ended" in engine.warning
    # nothing of the broken keys and values is used again
    assert await text_of(engine, job("a ~ b"))
    assert [await text_of(engine, job(prompt)) for prompt in ("Hello", "Hi there")] == alone


async def test_biases_that_leave_nothing_to_choose_are_their_requests_own_fault(
    engine: Engine,
) -> None:
    forbidden = dict.fromkeys(range(259), -math.inf)
    other, error = await asyncio.gather(
        text_of(engine, job("Hello")),
        text_of(engine, job("Hi", logit_bias=forbidden)),
        return_exceptions=True,
    )
    assert isinstance(error, EngineError)
    assert (error.code, error.retryable) == ("invalid", False)
    assert other == await text_of(engine, job("Hello"))


# ---- a thread that dies all the same


async def test_a_decoding_thread_that_dies_hands_its_cause_to_every_run(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a fault, so that three such deaths make a dead letter; the watchdog sees it, and the
    engine starts again.
    """
    decoder = engine._decoder  # type: ignore[attr-defined]
    lock = ReadersWriterLock(lambda: None)
    runs = [
        JobRun(engine, job("go on", max_tokens=400), "n1", "boot", number, Told(), lock)
        for number in range(2)
    ]
    monkeypatch.setattr(decoder._scheduler, "step", _dies)
    endings = await asyncio.gather(*(run.run() for run in runs))
    for ending in endings:
        assert isinstance(ending, Interrupted)
        assert ending.fault
        assert "KeyError: 'nobody expected this'" in ending.reason
    assert engine.stalled() == math.inf
    with pytest.raises(EngineStopped, match="nobody expected this"):
        await read(engine, job("x"))
    hung: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    working = asyncio.Event()
    supervisor = EngineSupervisor(
        engine, 0.1, lambda: working.set() if supervisor.ready else None, hung.set_result
    )
    supervisor.ready = True
    assert supervisor._watchdog is not None
    supervisor._watchdog.start()
    async with asyncio.timeout(20):
        assert await hung == "the engine's thread has died"
        await working.wait()
    assert await text_of(engine, job("Hello"))
    await supervisor.stop()


def _dies(*_: Any) -> Any:
    raise KeyError("nobody expected this")


async def test_an_intake_thread_that_dies_hangs_nobody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = engine._decoder  # type: ignore[attr-defined]

    def dies(self: Any, sequence: Any) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(intake.Intake, "_admit", dies)
    results = await asyncio.gather(
        *(read(engine, job("x")) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(result, EngineError) and result.retryable for result in results)
    assert "intake thread died" in str(results[0])
    assert decoder.stalled() == math.inf
    monkeypatch.undo()
    await engine.stop()
    assert not engine.stuck
    await engine.start()
    assert await text_of(engine, job("Hello"))


async def test_a_prompt_that_takes_long_stops_nobody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    reading, done = asyncio.Event(), asyncio.Event()
    original = Prompts.prepare

    def slow(prompts: Prompts, item: Job) -> Any:
        if item.prompt == "long":
            loop.call_soon_threadsafe(reading.set)
            asyncio.run_coroutine_threadsafe(done.wait(), loop).result(20)
        return original(prompts, item)

    stream = engine.run(job("Hello", max_tokens=300, logit_bias={1: -100.0}))
    await anext(stream)
    monkeypatch.setattr(Prompts, "prepare", slow)
    late = asyncio.create_task(text_of(engine, job("long")))
    await reading.wait()
    tokens = [chunk.tokens async for chunk in stream]
    assert sum(tokens) == 300
    assert not late.done()
    done.set()
    assert await late


@pytest.mark.parametrize(
    ("error", "code", "retryable", "alone"),
    [
        (KeyError("x"), "internal", False, True),
        (MemoryError(), "engine", True, True),
        (RuntimeError("CUDA error: device-side assert triggered"), "engine", True, False),
        (InvalidRequest("no"), "invalid", False, True),
    ],
)
def test_whose_fault_it_is(error: Exception, code: str, retryable: bool, alone: bool) -> None:
    made = sequence_error(error)
    assert (made.code, made.retryable, made.isolated) == (code, retryable, alone)
    assert "\n" not in str(made)
