"""The compatibility probe: a runner gives the tokens of `generate`, also beyond the windows."""

from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from triton.runtime.errors import OutOfResources

from tests.unit.engine.architectures import (
    answers,
    generated,
    loaded,
    made,
    prompts,
    tiny,
    tokenizer,
)
from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import attention, compilation, kv_cache
from worker.engines.transformers.model import loader as loading
from worker.engines.transformers.model.cache_size import CacheSize
from worker.engines.transformers.model.errors import UnsupportedModel
from worker.engines.transformers.model.kv_cache import (
    KVCacheLayout,
    KVCacheShape,
    KVScales,
    attention_function,
)
from worker.engines.transformers.model.loader import prepare_model
from worker.engines.transformers.model.miniature import Miniature
from worker.engines.transformers.model.probe import create_runner, probe_padded_batch, probe_runner
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.engines.transformers.model.shrunk_config import LIMIT, shrunk
from worker.engines.transformers.model.window import Window

_LAYERS = {"num_hidden_layers": 4}
WINDOWED = {
    "llama4_text": {},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 1, **_LAYERS},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **_LAYERS},
    "phimoe": {"sliding_window": 2047},
    "doge": {},
    "mistral": {},
    "gemma3_text": {},
    "cohere2": {},
    "gpt_neo": {},
    "gpt_oss": {},
    "modernbert-decoder": {},
    "exaone4": {"sliding_window": 4096, "sliding_window_pattern": 2, **_LAYERS},
    "smollm3": {"use_sliding_window": True, "sliding_window": 4096},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", WINDOWED)
def test_tokens_beyond_a_window_are_the_librarys(kind: str) -> None:
    model = tiny(kind, **WINDOWED[kind])
    asked = prompts((3, LIMIT - 2, 4 * LIMIT, 70))
    expected = [generated(model, prompt, 20) for prompt in asked]
    assert answers(loaded(model), asked, 20) == expected


@pytest.mark.parametrize("kind", ["llama4_text", "qwen2_moe", "doge"])
def test_a_window_that_is_far_away_is_noticed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No short prompt comes near the window of this small model, but its miniature's does. Here the
    runner does not know windows.
    """
    for module in (attention, kv_cache):
        monkeypatch.setattr(module, "layer_window", lambda *_: Window())
    config = shrunk(CONFIG_MAPPING[kind](**WINDOWED[kind]))
    for name in ("attention_chunk_size", "floor_scale", "sliding_window", "keep_window_size"):
        if hasattr(config, name):
            setattr(config, name, 4096)
    model = made(config)
    with attention_function(model, "sdpa"):
        create_runner(
            model, KVCacheLayout(model), CacheSize(2, 64)
        ).release()  # short prompts show no difference
    assert prepare_model(model, tokenizer(), 2, 64).runner is None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("inkling_text", "position_bias"),
        ("diffllama", "twice"),
        ("mamba", "0 of its 2 layers"),
        ("bloom", "cannot be replaced"),
        ("doge", "differ"),
    ],
)
def test_an_unsupported_model_is_left_as_it_was(kind: str, reason: str) -> None:
    model = tiny(kind)
    before = {id(each): each._attn_implementation for each in _configs(model)}
    with pytest.raises(UnsupportedModel, match=reason):
        loading.runner_of(model, tokenizer(), Miniature(model), 2, 64)
    assert {id(each): each._attn_implementation for each in _configs(model)} == before
    assert not any(hasattr(module, "key_cache") for module in model.modules())


def _configs(model: Any) -> list[Any]:
    return [module.config for module in model.modules() if hasattr(module, "config")]


def test_a_mask_that_the_runner_does_not_know_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a window that does not reach the attention function."""
    attend = attention.attention_forward

    def without(*tensors: Any, sliding_window: int | None = None, **settings: Any) -> Any:
        return attend(*tensors, **settings)

    monkeypatch.setattr(attention, "attention_forward", without)
    model = tiny("mistral")
    with pytest.raises(UnsupportedModel, match="differ"):
        probe_runner(Miniature(model), KVCacheLayout(model).kinds)


def test_a_miniature_without_the_models_kinds_of_layers_proves_nothing() -> None:
    model = tiny("mistral")
    kinds = {kind._replace(windowed=not kind.windowed) for kind in KVCacheLayout(model).kinds}
    with pytest.raises(UnsupportedModel, match="no MistralAttention like it"):
        probe_runner(Miniature(model), kinds)


def test_what_cannot_be_made_small_is_computed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def impossible(_: Any) -> Any:
        raise ValueError("a condition of its own")

    monkeypatch.setattr("worker.engines.transformers.model.miniature.shrunk", impossible)
    model = tiny("llama")
    prompt_ids = prompts()
    expected = [generated(model, prompt, 6) for prompt in prompt_ids]
    with capture_logs() as lines:
        there = loaded(model)
    assert (there.runner, there.batched) == (None, False)
    assert [line["reason"] for line in lines if line["event"] == "computed the library's way"] == [
        "its behaviour beyond its windows cannot be tested: a condition of its own"
    ]
    assert answers(there, prompt_ids, 6) == expected


def test_rows_that_give_other_tokens_together_are_noticed() -> None:
    model = tiny("mamba")
    with pytest.raises(UnsupportedModel):
        probe_padded_batch(Miniature(model), model)


def test_a_miniature_leaves_the_random_state_alone() -> None:
    model = tiny("llama")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    probe_runner(Miniature(model), KVCacheLayout(model).kinds)
    assert torch.equal(torch.rand(4), expected)


def test_a_probe_that_fails_frees_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    monkeypatch.setattr(loading, "probe_runner", lambda *_: None)
    monkeypatch.setattr(LocalModelRunner, "feed", lambda *_: None)
    monkeypatch.setattr(
        LocalModelRunner, "decode", lambda _, slots, *__, **___: torch.zeros(len(slots), 96)
    )
    with pytest.raises(UnsupportedModel, match="differ"):
        loading.runner_of(model, tokenizer(), Miniature(model), 2, 64)
    assert not any(hasattr(module, "key_cache") for module in model.modules())


_SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
}
_KERNEL_ERROR = OutOfResources(262_144, 232_448, "shared memory")


def test_a_kernel_that_does_not_fit_into_the_gpu_sends_the_model_to_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama")
    monkeypatch.setattr(loading, "probe_runner", lambda *_: None)
    monkeypatch.setattr(LocalModelRunner, "decode", raising(_KERNEL_ERROR))
    with pytest.raises(UnsupportedModel, match="shared memory"):
        loading.runner_of(model, tokenizer(), Miniature(model), 2, 64)
    assert not any(hasattr(module, "key_cache") for module in model.modules())


def test_a_model_that_could_not_be_optimized_is_the_librarys_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama")
    before = model.config._attn_implementation
    prompt = prompts((5,))[0]
    expected = generated(model, prompt, 4)

    def create(model: Any, layout: KVCacheLayout, size: CacheSize, **more: Any) -> None:
        runner = create_runner(model, layout, size, **more)
        assert model.config._attn_implementation == attention.NAME
        loading._optimize(model, layout, runner)  # as on a GPU

    monkeypatch.setattr(loading, "create_runner", create)
    monkeypatch.setattr(compilation, "optimize", raising(_KERNEL_ERROR))
    with pytest.raises(UnsupportedModel, match="shared memory"):
        loading.runner_of(model, tokenizer(), Miniature(model), 2, 64)
    assert not any(hasattr(module, "key_cache") for module in model.modules())
    assert model.config._attn_implementation == before
    assert generated(model, prompt, 4) == expected


def raising(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [RuntimeError("stream is capturing"), _KERNEL_ERROR])
def test_a_model_whose_steps_cannot_be_recorded_is_computed_without(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a model asks the device for a number in the middle of a step."""
    model = tiny("llama")
    runner = create_runner(model, KVCacheLayout(model), CacheSize(2, 64))

    def impossible(_: Any) -> None:
        monkeypatch.setitem(runner._graphs.decode, 1, None)
        raise error

    monkeypatch.setattr(runner, "capture_graphs", impossible)
    with capture_logs() as lines:
        compilation.capture_graphs(runner)
    assert [line["event"] for line in lines] == ["decoding steps are not recorded"]
    assert not runner._graphs.decode


def test_an_allocation_that_fails_frees_what_it_allocated() -> None:
    model = tiny("llama")
    layout = KVCacheLayout(model)
    second = list(layout.shapes)[1]
    layout.shapes[second] = KVCacheShape(kv_heads=2**40, head_size=2**20)
    with pytest.raises(RuntimeError):
        create_runner(model, layout, CacheSize(2, 64))
    assert not any(hasattr(module, "key_cache") for module in model.modules())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("x")])
def test_a_step_that_cannot_be_timed_is_refused_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> dict[int, float]:
        raise error

    monkeypatch.setattr(loading, "measure_step_seconds", fail)
    model = tiny("llama")
    with pytest.raises(EngineUnavailable, match=str(error)) as refused:
        loading.prepare_model(model, tokenizer(), 2, 64)
    assert ("--memory-fraction" in str(refused.value)) == ("memory" in str(error))


def test_a_runner_leaves_nothing_on_the_attention_modules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama")
    layout = KVCacheLayout(model)
    module = next(iter(layout.shapes))
    before = set(vars(module))
    layout.scales = dict.fromkeys(layout.shapes, KVScales(2.0, 4.0))
    runner = LocalModelRunner(model, layout, CacheSize(2, 64))
    assert float(module.value_scale) == 4.0
    runner.release()
    assert set(vars(module)) == before
    # A module gets its caches first: what if there is no memory for the rest?
    monkeypatch.setattr(torch, "tensor", raising(torch.OutOfMemoryError()))
    with pytest.raises(torch.OutOfMemoryError):
        LocalModelRunner(model, layout, CacheSize(2, 64))
    assert set(vars(module)) == before


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rows"),
    [(8, 8, 64, 64), (8, 2, 64, 16), (8, 1, 64, 8), (32, 1, 64, 0), (4, 2, 1024, 0)],
)
def test_a_tile_has_as_many_rows_as_the_heads_leave_room_for(
    heads: int, kv_heads: int, head_dim: int, rows: int
) -> None:
    shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    config = CONFIG_MAPPING["llama"](**_SMALL, **shape, head_dim=head_dim)
    model = made(config)
    assert KVCacheLayout(model).prefix_tile_rows == rows


def test_a_window_as_long_as_the_context_is_none() -> None:
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = made(CONFIG_MAPPING["mistral"](**_SMALL, **shape, sliding_window=64))
    windows = {Window(64): KVCacheLayout(model, 65), Window(): KVCacheLayout(model, 64)}
    for window, layout in windows.items():
        assert set(layout.windows.values()) == {window}
        assert bool(layout.prefix_tile_rows) == (window == Window())
        assert {kind.windowed for kind in layout.kinds} == {True}  # as the miniature's
        runner = LocalModelRunner(model, layout, CacheSize(2, 64))
        for module in layout.shapes:
            assert attention.layer_window(module, 64) == window
        runner.release()
    prompt = prompts((40,))[0]
    expected = generated(model, prompt, 20)
    there = prepare_model(model, tokenizer(), 2, 64)
    assert there.runner is not None
    assert there.runner.windows == (Window(),)
    assert answers(there, [prompt], 20) == [expected]
