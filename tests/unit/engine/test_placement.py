"""A model's layers spread over several GPUs, as far as a machine without them can tell. "meta" is
another GPU, where nothing is computed.
"""

import dataclasses
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from transformers.integrations.accelerate import _get_device_map

from tests.unit.engine.tiny import CONFIGS
from worker.engines import create
from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import placement
from worker.engines.transformers.model.cache_size import CacheSize
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.probe import create_runner
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.engines.transformers.model.step import Step

META = torch.device("meta")


def tiny() -> Any:
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()


def test_devices_are_named_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement.find_devices("cpu") == [torch.device("cpu")]
    with pytest.raises(EngineUnavailable, match="only GPUs can share a model"):
        placement.find_devices("cpu,cpu")
    with pytest.raises(EngineUnavailable, match="no such device 'nonsense'"):
        placement.find_devices("cpu, nonsense")
    monkeypatch.setattr(placement, "find_device", torch.device)  # as on a machine that has them
    assert placement.find_devices("cuda:2, cuda:0") == [
        torch.device("cuda", 2),
        torch.device("cuda", 0),
    ]
    with pytest.raises(EngineUnavailable, match="named twice"):
        placement.find_devices("cuda:0,cuda:1,cuda:0")
    with pytest.raises(EngineUnavailable, match="by their numbers"):
        placement.find_devices("cuda,cuda:1")


async def test_what_is_spread_is_not_divided_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "find_device", torch.device)
    options = {"model": "tiny", "model_path": str(tmp_path), "slots": 1, "token_delay": 0}
    engine = create("transformers", device="cuda:0,cuda:1", tensor_parallel=2, **options)  # type: ignore[arg-type]
    with pytest.raises(EngineUnavailable, match="--tensor-parallel takes one --device"):
        await engine.start()


def test_accelerate_spreads_the_layers_and_what_has_no_room_is_refused() -> None:
    """accelerate's own arithmetic, on a model without weights."""
    places = [torch.device("cuda", 2), torch.device("cuda", 3)]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    memory = placement.max_weight_memory(dict.fromkeys(places, 10**6))
    assert memory == {2: 800_000, 3: 800_000}
    spread = _get_device_map(model, "auto", memory, None)
    assert (spread["model.layers.0"], spread["model.layers.1"]) == (2, 3)
    placement.check_device_map(spread, places)
    placement.check_device_map({"model": torch.device("cuda", 3)}, places)
    small = _get_device_map(
        model, "auto", placement.max_weight_memory(dict.fromkeys(places, 80_000)), None
    )
    with pytest.raises(EngineUnavailable, match="too large for these 2 GPUs: no room for"):
        placement.check_device_map(small, places)


def test_keys_and_values_are_where_their_layer_computes() -> None:
    model = tiny()
    layout = KVCacheLayout(model)
    first, second = layout.shapes
    assert layout.devices == {first: torch.device("cpu"), second: torch.device("cpu")}
    layout.devices[second] = META
    runner = LocalModelRunner(model, layout, CacheSize(2, 64))
    assert (first.key_cache.device.type, first.value_cache.device.type) == ("cpu", "cpu")
    assert (second.key_cache.device, second.value_cache.device) == (META, META)
    whole = layout.bytes_per_token(torch.float32)
    assert (
        layout.bytes_per_token(torch.float32, META)
        == whole / 2
        == layout.bytes_per_token(torch.float32, model.device)
    )
    runner.release()


def test_a_step_is_copied_once_to_each_device() -> None:
    numbers = torch.arange(3)
    step = Step(numbers, numbers.int(), numbers.int(), chunk_starts=numbers.int())
    assert step.on(torch.device("cpu")) is step
    there = step.on(META)
    assert {
        getattr(there, name).device for name in ("slot_mapping", "slots", "lengths", "chunk_starts")
    } == {META}
    assert there.chunks == step.chunks
    assert step.on(META) is there
    assert there.on(META) is there
    assert dataclasses.replace(step, chunk_starts=None, copies={}).on(META).chunk_starts is None


def test_layers_with_accelerates_hooks_have_a_runner(tmp_path: Path) -> None:
    """accelerate's hooks, on the only device here: the second layer's weights come from disk."""
    model = tiny()
    parts = dict.fromkeys(
        ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"], "cpu"
    )
    accelerate.dispatch_model(
        model,
        {**parts, "model.layers.1": "disk"},
        main_device="cpu",
        offload_dir=tmp_path,
        force_hooks=True,
    )
    layout = KVCacheLayout(model)
    assert {place.type for place in layout.devices.values()} == {"cpu"}
    assert create_runner(model, layout, CacheSize(2, 64)).slots == 2
