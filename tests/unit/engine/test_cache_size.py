"""How many slots a GPU's memory gives, and what the engine makes of it. The memory is simulated."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker.wire import Job
from tests.unit.engine.tiny import CONFIGS, save_model, tokenizer
from worker.engines import create
from worker.engines.base import EngineError, EngineUnavailable
from worker.engines.transformers.engine import TransformersEngine
from worker.engines.transformers.model import loader as loading
from worker.engines.transformers.model.cache_size import (
    CacheSize,
    choose_size,
    min_tokens,
    node_share,
    size_for_slots,
)
from worker.engines.transformers.model.cuda_graphs import GRAPH_BATCH_SIZES
from worker.engines.transformers.model.loader import prepare_model
from worker.engines.transformers.model.memory import cache_size_for, token_capacity
from worker.engines.transformers.model.miniature import Miniature
from worker.engines.transformers.tensor_parallel import sharding

GPU = torch.device("cuda", 0)
TOKENS = st.integers(0, 10_000_000)
LONGEST = st.integers(1, 300_000)


@pytest.mark.parametrize(
    ("tokens", "longest", "expected"),
    [
        (257 * 131_072, 131_072, CacheSize(256, 131_072)),  # plenty: the model's own context
        (
            257 * 10_000,
            131_072,
            CacheSize(256, 9_984),
        ),  # the rest makes rows longer
        (257 * 8_192, 131_072, CacheSize(256, 8_192)),
        (257 * 8_192 - 1, 131_072, CacheSize(224, 8_192)),
        (830_000, 131_072, CacheSize(96, 8_192)),  # 8B in bfloat16 on a GPU of 141 GB
        (48_000, 131_072, CacheSize(8, 5_120)),  # the same on one of 24 GB
        (257 * 2_048, 2_048, CacheSize(256, 2_048)),
        (257 * 2_048 * 2, 2_048, CacheSize(256, 2_048)),  # more memory than the model can use
        (9 * 8_192, 131_072, CacheSize(8, 8_192)),
        (9 * 2_048, 131_072, CacheSize(8, 2_048)),
        (9 * 2_048 - 1, 131_072, CacheSize(4, 2_048)),
        (3 * 2_048, 131_072, CacheSize(2, 2_048)),
        (2 * 2_048, 131_072, CacheSize(1, 2_048)),
        (2 * 512, 131_072, CacheSize(1, 512)),
        (2 * 512 - 1, 131_072, None),
        (2 * 300, 300, CacheSize(1, 300)),
        (2 * 300 - 1, 300, None),
        (0, 131_072, None),
    ],
)
def test_slots_and_context_of_some_memories(
    tokens: int, longest: int, expected: CacheSize | None
) -> None:
    assert choose_size(tokens, longest, GRAPH_BATCH_SIZES) == expected


@given(TOKENS, LONGEST)
def test_it_fits_and_what_is_refused_does_not(tokens: int, longest: int) -> None:
    size = choose_size(tokens, longest, GRAPH_BATCH_SIZES)
    if size is None:
        assert tokens < min_tokens(longest)
        return
    assert (size.slots + 1) * size.context <= tokens
    assert size.slots in GRAPH_BATCH_SIZES
    assert 1 <= size.slots <= 256
    assert min(longest, 512) <= size.context <= longest
    assert size.context <= 8192 or size.slots == 256
    assert size.slots >= 8 or size.context <= 2048


@given(TOKENS, st.integers(0, 1_000_000), LONGEST)
def test_more_memory_gives_no_less_of_either(tokens: int, more: int, longest: int) -> None:
    before, after = (
        choose_size(each, longest, GRAPH_BATCH_SIZES) or CacheSize(0, 0)
        for each in (tokens, tokens + more)
    )
    assert after.slots >= before.slots
    assert after.context >= before.context


@given(TOKENS, LONGEST, st.integers(1, 1000))
def test_slots_that_were_asked_for_are_given(tokens: int, longest: int, slots: int) -> None:
    size = size_for_slots(tokens, longest, slots)
    assert size.slots == slots
    assert 1 <= size.context <= longest
    assert size.context == 1 or (slots + 1) * size.context <= tokens


@given(st.integers(1, 200), st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_the_parts_of_a_shared_gpu_are_no_more_than_all_of_it(total: int, held: list[int]) -> None:
    free = total - sum(held)
    parts = [node_share(free, total, each, len(held)) for each in held]
    assert all(0 <= each <= max(0, free) for each in parts)
    if all(each <= total // len(held) for each in held):
        assert sum(parts) <= free
    assert node_share(free, total, sum(held), 1) == max(0, free)


# ---- the device's memory


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 GB, of which this process and others have 1 each."""
    monkeypatch.delenv("CANOPY_GPU_NODES", raising=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8_000_000_000, 10_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 1_000_000_000)


def model(longest: int | None, place: torch.device = GPU) -> Any:
    text = SimpleNamespace(max_position_embeddings=longest)
    config = SimpleNamespace(get_text_config=lambda decoder: text)
    return SimpleNamespace(device=place, config=config, named_modules=list)


@pytest.mark.usefixtures("gpu")
def test_most_of_a_gpus_free_memory_is_for_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_capacity(GPU, 1000) == token_capacity(GPU, 1000, shared=True) == 6_800_000
    monkeypatch.setenv("CANOPY_GPU_NODES", "2")
    assert token_capacity(GPU, 1000) == 6_800_000  # where the operator chose the slots
    assert token_capacity(GPU, 1000, shared=True) == 3_400_000
    monkeypatch.setenv("CANOPY_GPU_NODES", "two")
    with pytest.raises(EngineUnavailable, match="CANOPY_GPU_NODES must be a number"):
        token_capacity(GPU, 1000, shared=True)


def test_a_gpu_chooses_and_says_so() -> None:
    with capture_logs() as logs:
        assert cache_size_for(model(131_072), 830_000, None) == CacheSize(96, 8192)
    assert logs == [{"event": "slots", "chosen": 96, "context": 8192, "log_level": "info"}]
    assert cache_size_for(model(None), 830_000, None) == CacheSize(96, 8192)


def test_asked_slots_and_a_cpu_are_as_ever() -> None:
    with capture_logs() as logs:
        assert cache_size_for(model(131_072), 830_000, 64) == CacheSize(64, 830_000 // 65)
        assert cache_size_for(model(131_072), 830_000, 4, context=2000) == CacheSize(4, 2000)
        assert cache_size_for(model(131_072), 3, 64) == CacheSize(64, 1)
        assert cache_size_for(model(4096, torch.device("cpu")), 10**9, None) == CacheSize(8, 4096)
    assert logs == []


def test_no_room_for_one_answer_is_one_line() -> None:
    with pytest.raises(
        EngineUnavailable, match="room for keys and values of 900 tokens, and one answer needs 1024"
    ) as no:
        cache_size_for(model(131_072), 900, None)
    assert "\n" not in str(no.value)


# ---- the engine


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_THREADS", "1")


def tiny() -> Any:
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()


def pretend(monkeypatch: pytest.MonkeyPatch, *sizes: CacheSize) -> list[int | None]:
    """Without a number of slots, the cache sizes are `sizes`, in turn."""
    told, asked = iter(sizes), []

    def size(
        _model: Any, _tokens: int, slots: int | None, _context: int | None = None
    ) -> CacheSize:
        asked.append(slots)
        return CacheSize(slots, 64) if slots is not None else next(told)

    monkeypatch.setattr(loading, "cache_size_for", size)
    return asked


def job() -> Job:
    return Job(request_id="r", model="tiny", reply_to="q", created=0.0, prompt="Hi")


def engine(folder: Path, slots: int | None) -> TransformersEngine:
    made = create(
        "transformers",
        model="tiny",
        model_path=str(folder),
        device="cpu",
        slots=slots,
        token_delay=0,
    )
    assert isinstance(made, TransformersEngine)
    return made


async def test_an_engine_knows_its_slots_when_it_has_started_and_finds_out_again_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pretend(monkeypatch, CacheSize(3, 96), CacheSize(1, 64))
    made = engine(save_model("llama", tmp_path / "llama"), None)
    assert made.slots == 8  # a guess
    await made.start()
    assert made.slots == 3
    await made.stop()
    await made.start()
    assert made.slots == 1
    assert asked == [None, None]
    first = made.run(job())
    await anext(first)
    with pytest.raises(EngineError, match="all 1 slots are taken") as full:
        await anext(made.run(job()))
    assert full.value.retryable
    assert full.value.isolated  # the engine is well
    await first.aclose()  # type: ignore[attr-defined]
    await made.stop()


async def test_on_a_cpu_there_are_eight_and_a_number_is_kept(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "llama")
    for slots, expected in ((None, 8), (3, 3)):
        made = engine(folder, slots)
        await made.start()
        assert made.slots == expected
        await made.stop()


def test_other_engines_get_eight() -> None:
    assert (
        create("echo", model="m", model_path=None, device="auto", slots=None, token_delay=0).slots
        == 8
    )
    assert (
        create("echo", model="m", model_path=None, device="auto", slots=2, token_delay=0).slots == 2
    )
    with pytest.raises(EngineUnavailable, match="at least one slot"):
        create("echo", model="m", model_path=None, device="auto", slots=0, token_delay=0)


def test_the_fallback_has_eight_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch)
    monkeypatch.setenv("CANOPY_LIBRARY_ATTENTION", "1")
    assert prepare_model(tiny(), tokenizer(), None).slots == 8
    assert asked == [8]


def test_layers_on_several_devices_have_the_slots_of_the_tightest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second layer's device is simulated: less is free there."""
    seen = []

    def size(_model: Any, tokens: int, slots: int | None, _context: int | None = None) -> CacheSize:
        seen.append((tokens, slots))
        return CacheSize(2, 64)

    class Spread(loading.KVCacheLayout):
        def __init__(self, model: Any) -> None:
            super().__init__(model)
            self.devices[list(self.shapes)[1]] = torch.device("meta")

    monkeypatch.setattr(loading, "KVCacheLayout", Spread)
    monkeypatch.setattr(
        loading,
        "token_capacity",
        lambda place, _bytes, shared: {"cpu": 9000, "meta": 7000}[place.type],
    )
    monkeypatch.setattr(loading, "cache_size_for", size)
    monkeypatch.setattr(
        loading,
        "create_runner",
        lambda _model, _layout, slots, context, rope_limit: SimpleNamespace(
            slots=slots, context=context
        ),
    )
    model = tiny()
    runner = loading.runner_of(model, Miniature(model), None, 64)
    assert seen == [(7000, None)]
    assert (runner.slots, runner.context) == (2, 64)


@pytest.mark.parametrize("slots", [None, 3])
def test_processes_that_share_a_model_agree_on_the_tightest(
    slots: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This rank has room for 1000 tokens, another one for 400."""

    def least(own: torch.Tensor, _how: Any) -> None:
        assert int(own) == 1000
        own.fill_(400)

    monkeypatch.setattr(sharding, "token_capacity", lambda _place, _bytes, shared: 1000)
    monkeypatch.setattr(torch.distributed, "all_reduce", least)
    runner = sharding.create_shard_runner(tiny(), slots, 2)
    expected = slots or 8
    assert (runner.slots, runner.context) == (expected, 400 // (expected + 1))
