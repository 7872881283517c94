"""One request harms itself alone: whatever raises in the decoding loop ends the sequence it worked
for, or those of its forward pass. Everybody else's answer is to the letter what it is alone, and no
slot is lost.

`HUNT=20000 pytest tests/unit/engine/test_isolation.py --timeout 0` tries so many random schedules,
from HUNT_FIRST on.
"""

import os
import queue
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import pytest
import structlog
import torch

from broker.wire import Job, Sampling
from tests.unit.engine.pages import use_pages
from tests.unit.engine.tiny import save_model
from worker.engines.base import Chunk, EngineError
from worker.engines.stop_filter import StopFilter
from worker.engines.transformers import sequence, throttle
from worker.engines.transformers.cache.paged_cache import PagedCache
from worker.engines.transformers.cache.slot_cache import SlotCache
from worker.engines.transformers.decoder import Decoder
from worker.engines.transformers.fallback.padded import PaddedBatch
from worker.engines.transformers.mailbox import Mailbox
from worker.engines.transformers.model.cache_size import BLOCK_SIZE
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.model.loader import load
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.engines.transformers.sampling.penalties import LogitBias, TokenCounts
from worker.engines.transformers.sampling.sampler import RequestRNG, Sampler
from worker.engines.transformers.sampling.sampler_output import SamplerOutput
from worker.engines.transformers.scheduler import SlotScheduler
from worker.engines.transformers.scheduler_protocol import StepOutput
from worker.engines.transformers.sequence import Sequence
from worker.engines.transformers.text import detokenizer as detokenize
from worker.engines.transformers.text import token_bytes as spelling
from worker.engines.transformers.text.answer_text import AnswerText
from worker.engines.transformers.throttle import StreamThrottle

_SCHEDULES = int(os.environ.get("HUNT", "500"))
_SLOTS = 3
_SHARED = "a beginning that several of the prompts have, long enough to be copied: "

ROW = [  # work for one sequence: at most one of them fails
    (Sequence, "prepare"),
    (Sequence, "append_token"),
    (AnswerText, "push"),
    (AnswerText, "end"),
    (detokenize.Detokenizer, "push"),
    (detokenize.Detokenizer, "flush"),
    (StopFilter, "push"),
    (StopFilter, "flush"),
    (spelling.TokenBytes, "of"),
    (SamplerOutput, "sampled"),
    (Sampler, "assign"),
    (TokenCounts, "assign"),
    (LogitBias, "assign"),
    (Sampler, "_sample_all"),
    (Sampler, "_sample_by_method"),
    (Sampler, "_logprobs"),
    (TokenCounts, "penalise"),
    (LogitBias, "apply"),
    (RequestRNG, "advance"),
    (StreamThrottle, "_due_now"),
    (throttle, "merge_chunks"),
    (sequence, "AnswerText"),
]
SLOT_ROW = [
    (SlotCache, "allocate"),
    (SlotCache, "extend"),
    (SlotCache, "invalidate"),
    (SlotCache, "release"),
    (LocalModelRunner, "copy_prefix"),
]
PAGE_ROW = [
    (PagedCache, "allocate"),
    (PagedCache, "extend"),
    (PagedCache, "invalidate"),
    (PagedCache, "release"),
    (PagedCache, "grow"),
]
PAGE_STEP = [
    (LocalModelRunner, "set_blocks"),
    (LocalModelRunner, "share_prefixes"),
]
MEMORY: dict[str, list[tuple[Any, str]]] = {"slots": SLOT_ROW, "pages": PAGE_ROW, "rows": []}
SLOT_STEP = [
    (LocalModelRunner, "prefill"),
    (LocalModelRunner, "decode"),
    (LocalModelRunner, "feed"),
    (LocalModelRunner, "check"),
    (SamplerOutput, "wait"),
    (Sampler, "count"),
    (TokenCounts, "add"),
]
ROWS_STEP = [
    (PaddedBatch, "step"),
    (PaddedBatch, "adopt"),
    (PaddedBatch, "remove_finished"),
    (PaddedBatch, "__init__"),
    (PaddedBatch, "prefill"),
    (SamplerOutput, "wait"),
    (Sampler, "count"),
    (TokenCounts, "add"),
]


class Injected(Exception):
    """What nobody expects."""


class Fault(NamedTuple):
    """A callable that raises once: at its `at`-th call from now on, before or after its work."""

    owner: Any
    name: str
    at: int
    after: bool


@contextmanager
def injected(fault: Fault) -> Iterator[None]:
    """In the decoding loop's own modules a name may be a function or a class."""
    original = getattr(fault.owner, fault.name)
    calls = 0

    def raising(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != fault.at:
            return original(*args, **kwargs)
        if fault.after:
            original(*args, **kwargs)
        raise Injected(f"in {fault.name}, call {fault.at}")

    setattr(fault.owner, fault.name, raising)
    try:
        yield
    finally:
        setattr(fault.owner, fault.name, original)


def _jobs() -> list[Job]:
    """Every kind of work that a sequence may need: penalties, biases, logprobs, stops, seeds."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("Hello", {}),
        (f"{_SHARED}one", {"max_tokens": 9}),
        (f"{_SHARED}two", {"temperature": 1.0, "seed": 7}),
        (
            f"{_SHARED}three",
            {"temperature": 0.9, "seed": 3, "top_k": 20, "top_p": 0.9, "logprobs": 2},
        ),
        ("Once upon", {"stop": ("e", "zz"), "logprobs": 0}),
        (
            "日本語 😀",
            {"frequency_penalty": 0.7, "repetition_penalty": 1.3, "seed": 5, "temperature": 0.7},
        ),
        ("Say", {"logit_bias": {40: 5.0, 50: -5.0}, "temperature": 1.3, "seed": 11, "min_p": 0.05}),
        ("abc" * 30, {"stop": ("qqq",), "reproducible": True, "seed": 1, "temperature": 1.0}),
    ]
    return [
        Job(
            request_id=str(number), model="tiny", reply_to="q", created=0.0, prompt=prompt,
            sampling=Sampling(**{"temperature": 0.0, "max_tokens": 7, **settings}),
        )
        for number, (prompt, settings) in enumerate(kinds)
    ]  # fmt: skip


class Answer(NamedTuple):
    """How a run ended."""

    text: str
    tokens: int
    finish: str
    error: EngineError | None


class Runs:
    """A decoder whose news are read here."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._news: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
        self.decoder = Decoder(loaded, _SLOTS, self._news.put)
        self.decoder.start()

    def answers(self, jobs: list[Job]) -> list[Answer]:
        """Of jobs that are submitted at once. Each ends exactly once."""
        heard: dict[Mailbox, list[Chunk | EngineError]] = {Mailbox(): [] for _ in jobs}
        for job, mailbox in zip(jobs, heard, strict=True):
            self.decoder.submit(Sequence(job, mailbox))
        open_runs = set(heard)
        while open_runs:
            for mailbox, item in self._news.get(timeout=20):
                if mailbox in open_runs:  # an error may follow what ended it for its reader
                    heard[mailbox].append(item)
                    if isinstance(item, EngineError) or item.finish is not None:
                        open_runs.discard(mailbox)
        return [_answer(items) for items in heard.values()]


def _answer(items: list[Chunk | EngineError]) -> Answer:
    chunks = [item for item in items if isinstance(item, Chunk)]
    errors = [item for item in items if isinstance(item, EngineError)]
    text = "".join(chunk.text for chunk in chunks)
    tokens = sum(chunk.tokens for chunk in chunks)
    return Answer(
        text, tokens, chunks[-1].finish or "" if chunks else "", errors[0] if errors else None
    )


class World(NamedTuple):
    loaded: LoadedModel
    jobs: list[Job]
    alone: list[Answer]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    torch.set_num_threads(1)  # tiny matrices gain nothing from a second core
    folder = save_model("llama", tmp_path_factory.mktemp("models") / "llama")
    slots = load(folder, "cpu", _SLOTS)
    with pytest.MonkeyPatch.context() as patch:
        use_pages(patch, 600)  # so few that sequences are preempted
        pages = load(folder, "cpu", _SLOTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CANOPY_LIBRARY_ATTENTION", "1")
        rows = msgspec.structs.replace(load(folder, "cpu", _SLOTS), prefill_tokens=64)
    assert rows.runner is None
    return {"slots": _world(slots), "pages": _world(pages), "rows": _world(rows)}


def _world(loaded: LoadedModel) -> World:
    runs, jobs = Runs(loaded), _jobs()
    alone = [runs.answers([job])[0] for job in jobs]
    assert runs.decoder.stop(10)
    assert all(answer.error is None and answer.tokens for answer in alone)
    return World(loaded, jobs, alone)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Tracebacks of thousands of injected faults say nothing."""
    configured = structlog.get_config()
    structlog.configure(processors=[_dropped])
    yield
    structlog.configure(**configured)


def _dropped(*_: Any) -> Any:
    raise structlog.DropEvent


def _schedule(seed: int, kind: str) -> tuple[list[int], Fault, bool]:
    """Which jobs come in which order; what raises; and whether it concerns one sequence alone."""
    dice = random.Random(seed)
    order = dice.sample(range(len(_jobs())), dice.randint(2, 5))
    rows = ROW + MEMORY[kind]
    steps = {"rows": ROWS_STEP, "slots": SLOT_STEP, "pages": SLOT_STEP + PAGE_STEP}[kind]
    owner, name = dice.choice(rows if dice.random() < 0.75 else steps)
    at = min(dice.randint(1, 4) * dice.choice([1, 1, 3]), 12)
    return order, Fault(owner, name, at, after=dice.random() < 0.2), (owner, name) in rows


def _check(seed: int, kind: str, world: World) -> None:
    order, fault, row = _schedule(seed, kind)
    runs = Runs(world.loaded)
    with injected(fault):
        answers = runs.answers([world.jobs[number] for number in order])
    what = f"seed {seed}, {kind}, {fault}"
    failed = [answer for answer in answers if answer.error is not None]
    for number, answer in zip(order, answers, strict=True):
        if answer.error is None:
            assert answer == world.alone[number], what
        else:
            assert "Injected" in str(answer.error) or "in " in str(answer.error), what
            assert world.alone[number].text.startswith(answer.text), what
    assert len(failed) <= (1 if row else _SLOTS), (what, failed)
    _check_usable(runs, world, what)


def _check_usable(runs: Runs, world: World, what: str) -> None:
    """The decoder works on, with all of its slots, and what they hold is right."""
    assert runs.decoder.stalled() < 10, what
    assert runs.answers(world.jobs[:1]) == world.alone[:1], what
    assert runs.decoder.stop(10), what
    scheduler: Any = runs.decoder._scheduler
    if isinstance(scheduler, SlotScheduler):
        scheduler._release_finished()
        cache = scheduler._cache
        if isinstance(cache, PagedCache):
            assert len(cache._free_slots) == _SLOTS, what
            assert cache.free_tokens == scheduler._runner.blocks * BLOCK_SIZE, what
            assert not cache._pending, what
        else:
            assert cache.free == _SLOTS, what
    assert not scheduler.unfinished(), what


@pytest.mark.parametrize("kind", MEMORY)
@pytest.mark.parametrize("part", range(4))
def test_whatever_raises_harms_its_own_sequences_alone(
    kind: str, part: int, worlds: dict[str, World]
) -> None:
    first = int(os.environ.get("HUNT_FIRST", "0"))
    count = _SCHEDULES // 12
    offset = first + (4 * list(MEMORY).index(kind) + part) * count
    for seed in range(offset, offset + count):
        _check(seed, kind, worlds[kind])
