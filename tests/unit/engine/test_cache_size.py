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
    fraction_share,
    min_tokens,
    node_share,
    size_for_pages,
    size_for_slots,
)
from worker.engines.transformers.model.cuda_graphs import GRAPH_BATCH_SIZES
from worker.engines.transformers.model.loader import prepare_model
from worker.engines.transformers.model.memory import (
    cache_size_for,
    limit_gpu_memory,
    token_capacity,
)
from worker.engines.transformers.model.miniature import Miniature
from worker.engines.transformers.tensor_parallel import sharding

GPU = torch.device("cuda", 0)
TOKENS = st.integers(0, 10_000_000)
LONGEST = st.integers(1, 300_000)


@pytest.mark.parametrize(
    ("tokens", "longest", "slots", "expected"),
    [
        (830_000, 131_072, None, CacheSize(1024, 131_072, 51_874)),  # 8B on a GPU of 141 GB
        (48_000, 131_072, None, CacheSize(64, 47_984, 2_999)),  # the same on one of 24 GB
        (830_000, 131_072, 7, CacheSize(7, 131_072, 51_874)),
        (830_000, 1_000, 7, CacheSize(7, 1_000, 7 * 63)),  # more memory than is of use
        (16 * 33, 131_072, None, CacheSize(1, 512, 32)),
        (16 * 33 - 1, 131_072, None, None),
        (16 * 20, 300, None, CacheSize(1, 300, 19)),
        (0, 131_072, 1, None),
    ],
)
def test_pages_of_some_memories(
    tokens: int, longest: int, slots: int | None, expected: CacheSize | None
) -> None:
    assert size_for_pages(tokens, longest, slots, GRAPH_BATCH_SIZES) == expected


@given(TOKENS, LONGEST, st.none() | st.integers(1, 2000))
def test_pages_fit_and_one_sequence_fits_into_them(
    tokens: int, longest: int, slots: int | None
) -> None:
    size = size_for_pages(tokens, longest, slots, GRAPH_BATCH_SIZES)
    if size is None:
        return
    assert (size.blocks + 1) * 16 <= tokens
    assert size.context <= size.blocks * 16
    assert 1 <= size.slots <= max(1024, slots or 0)


@given(TOKENS, st.integers(0, 100_000), LONGEST)
def test_more_memory_gives_no_less_of_either(tokens: int, more: int, longest: int) -> None:
    sizes: list[CacheSize] = []
    for memory in (tokens, tokens + more):
        size = size_for_pages(memory, longest, None, GRAPH_BATCH_SIZES)
        sizes.append(size or CacheSize(0, 0))
    less, greater = sizes
    assert less.slots <= greater.slots
    assert less.context <= greater.context
    assert less.blocks <= greater.blocks
    if not less.slots:
        assert tokens < min_tokens(longest)


@given(TOKENS, LONGEST, st.integers(1, 1000))
def test_slots_that_were_asked_for_are_given(tokens: int, longest: int, slots: int) -> None:
    size = size_for_slots(tokens, longest, slots)
    assert size.slots == slots
    assert 1 <= size.context <= longest
    assert size.context == 1 or (slots + 1) * size.context <= tokens


@given(st.integers(1, 200), st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_the_parts_of_a_shared_gpu_are_no_more_than_all_of_it(
    total: int, reserved: list[int]
) -> None:
    free = total - sum(reserved)
    parts = [node_share(free, total, each, len(reserved)) for each in reserved]
    assert all(0 <= each <= max(0, free) for each in parts)
    if all(each <= total // len(reserved) for each in reserved):
        assert sum(parts) <= free
    assert node_share(free, total, sum(reserved), 1) == max(0, free)


@given(st.integers(0, 200), st.integers(1, 200), st.integers(0, 200), st.floats(0.01, 1))
def test_a_fraction_is_of_all_memory_whoever_has_the_rest(
    free: int, total: int, reserved: int, fraction: float
) -> None:
    gigabyte = 1 << 30
    share = fraction_share(free * gigabyte, total * gigabyte, reserved * gigabyte, fraction)
    assert 0 <= share <= free * gigabyte
    assert share == 0 or share + reserved * gigabyte < total * gigabyte * fraction
    if free >= total:
        expected = int(total * gigabyte * fraction) - (reserved + 1) * gigabyte
        assert share == max(0, min(free * gigabyte, expected))


# ---- the device's memory


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 GB, of which this process and others have 1 each."""
    monkeypatch.delenv("CANOPY_GPU_NODES", raising=False)
    monkeypatch.delenv("CANOPY_MEMORY_FRACTION", raising=False)
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


def test_two_nodes_with_a_fraction_get_the_same_whichever_starts_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    total, weights = 100_000_000_000, 16_000_000_000
    monkeypatch.setenv("CANOPY_MEMORY_FRACTION", "0.45")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: weights)
    capacities = []
    for others in (0, 45_000_000_000):
        free = total - weights - others
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, total))
        for nodes in ("", "2"):
            monkeypatch.setenv("CANOPY_GPU_NODES", nodes)
            capacities.append(token_capacity(GPU, 1000, shared=True))
    [capacity] = set(capacities)
    assert 0.8 * 28_000_000 < capacity < 0.85 * 29_000_000


@pytest.mark.usefixtures("gpu")
def test_a_process_is_kept_within_its_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, _: limits.append(fraction)
    )
    limit_gpu_memory(GPU)
    monkeypatch.setenv("CANOPY_MEMORY_FRACTION", "0.5")
    limit_gpu_memory(GPU)
    limit_gpu_memory(torch.device("cpu"))
    assert limits == [pytest.approx(0.5 - 0.107, abs=0.001)]  # without the driver's gigabyte


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("text", ["0", "1.1", "-1", "nan", "half"])
def test_a_fraction_is_above_0_and_at_most_1(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_MEMORY_FRACTION", text)
    with pytest.raises(EngineUnavailable, match="above 0 and at most 1, not"):
        token_capacity(GPU, 1000)


def test_a_gpu_chooses_and_says_so() -> None:
    with capture_logs() as logs:
        size = cache_size_for(model(131_072), 830_000, None, pages=True)
    assert size == CacheSize(1024, 131_072, 51_874)
    assert logs == [{"event": "slots", "chosen": 1024, "context": 131_072, "log_level": "info"}]
    assert cache_size_for(model(None), 830_000, None, pages=True).context == 8192


def test_rows_of_slots_that_were_asked_for_and_of_a_cpu() -> None:
    with capture_logs() as logs:
        assert cache_size_for(model(131_072), 830_000, 64) == CacheSize(64, 830_000 // 65)
        assert cache_size_for(model(131_072), 830_000, 4, context=2000) == CacheSize(4, 2000)
        assert cache_size_for(model(131_072), 3, 64) == CacheSize(64, 1)
        assert cache_size_for(model(4096, torch.device("cpu")), 10**9, None) == CacheSize(8, 4096)
    assert logs == []


def test_no_room_for_one_answer_is_one_line() -> None:
    with pytest.raises(
        EngineUnavailable, match="room for keys and values of 500 tokens, and one answer needs 528"
    ) as no:
        cache_size_for(model(131_072), 500, None, pages=True)
    assert "\n" not in str(no.value)
    assert cache_size_for(model(131_072), 528, None, pages=True).slots == 1


# ---- the engine


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_THREADS", "1")


def tiny() -> Any:
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()


def pretend(monkeypatch: pytest.MonkeyPatch, *sizes: CacheSize) -> list[int | None]:
    """Without a number of slots, the cache sizes are `sizes`, in turn."""
    pending, requested = iter(sizes), []

    def size(
        _model: Any, _tokens: int, slots: int | None, _context: int | None = None, **_: Any
    ) -> CacheSize:
        requested.append(slots)
        return CacheSize(slots, 64) if slots is not None else next(pending)

    monkeypatch.setattr(loading, "cache_size_for", size)
    return requested


def job() -> Job:
    return Job(request_id="r", model="tiny", reply_to="q", created=0.0, prompt="Hi")


def engine(folder: Path, slots: int | None) -> TransformersEngine:
    created = create(
        "transformers",
        model="tiny",
        model_path=str(folder),
        device="cpu",
        slots=slots,
        token_delay=0,
    )
    assert isinstance(created, TransformersEngine)
    return created


async def test_an_engine_knows_its_slots_when_it_has_started_and_finds_out_again_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = pretend(monkeypatch, CacheSize(3, 96), CacheSize(1, 64))
    measured_engine = engine(save_model("llama", tmp_path / "llama"), None)
    assert measured_engine.slots == 8  # a guess
    await measured_engine.start()
    assert measured_engine.slots == 3
    await measured_engine.stop()
    await measured_engine.start()
    assert measured_engine.slots == 1
    assert requested == [None, None]
    first = measured_engine.run(job())
    await anext(first)
    with pytest.raises(EngineError, match="all 1 slots are taken") as full:
        await anext(measured_engine.run(job()))
    assert full.value.retryable
    assert full.value.isolated  # the engine is well
    await first.aclose()  # type: ignore[attr-defined]
    await measured_engine.stop()


async def test_on_a_cpu_there_are_eight_and_a_number_is_kept(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "llama")
    for slots, expected in ((None, 8), (3, 3)):
        cpu_engine = engine(folder, slots)
        await cpu_engine.start()
        assert cpu_engine.slots == expected
        await cpu_engine.stop()


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
    requested = pretend(monkeypatch)
    monkeypatch.setenv("CANOPY_LIBRARY_ATTENTION", "1")
    assert prepare_model(tiny(), tokenizer(), None).slots == 8
    assert requested == [8]


def test_layers_on_several_devices_have_the_slots_of_the_tightest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second layer's device is simulated: less is free there."""
    seen = []

    def size(
        _model: Any, tokens: int, slots: int | None, _context: int | None = None, **_: Any
    ) -> CacheSize:
        seen.append((tokens, slots))
        return CacheSize(2, 64)

    class Spread(loading.KVCacheLayout):
        def __init__(self, model: Any, context: int | None = None) -> None:
            super().__init__(model, context)
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
        lambda _model, _layout, size, rope_limit: SimpleNamespace(
            slots=size.slots, context=size.context
        ),
    )
    model = tiny()
    runner = loading.runner_of(model, tokenizer(), Miniature(model), None, 64)
    assert seen == [(7000, None)]
    assert (runner.slots, runner.context) == (2, 64)


@pytest.mark.parametrize("slots", [None, 3])
def test_processes_that_share_a_model_agree_on_the_tightest(
    slots: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This rank has room for 1000 tokens, another one for 400; and the other one's last layer is
    computed of all tokens.
    """
    ranks = iter([(1000, 400), (1, 0)])

    def least(own: torch.Tensor, _how: Any) -> None:
        here, elsewhere = next(ranks)
        assert int(own) == here
        own.fill_(elsewhere)

    monkeypatch.setattr(sharding, "token_capacity", lambda _place, _bytes, shared: 1000)
    monkeypatch.setattr(torch.distributed, "all_reduce", least)
    model = tiny()
    model.tp_plan = {}  # whole here
    runner = sharding.create_shard(model, tokenizer(), slots, 2).runner
    expected = slots or 8
    assert (runner.slots, runner.context) == (expected, 400 // (expected + 1))
    assert not runner.keeps_tail
    assert next(ranks, None) is None
