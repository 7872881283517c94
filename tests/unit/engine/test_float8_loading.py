"""Weights that become float8 as they are read are those that become it afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.engine.tiny import save_model, tokenizer
from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import gpu_precision, loader
from worker.engines.transformers.model import room as room_module
from worker.engines.transformers.model.cache_size import CacheSize
from worker.engines.transformers.model.float8_linear import Float8Linear
from worker.engines.transformers.model.float8_loading import (
    Float8Config,
    count_float8_weights,
    float8_config,
)
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.miniature import Miniature
from worker.engines.transformers.model.probe import create_runner, probe_runner
from worker.engines.transformers.model.weight_files import read_headers

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_PRECISION", "fp8")


def float8_tensors(model: Any) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if type(module) is Float8Linear:
            tensors[name] = module.weight.float() * module.scales
            if module.bias is not None:
                tensors[f"{name} bias"] = module.bias.float()
    return tensors


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_it_is_the_same_model(kind: str, tmp_path: Path) -> None:
    folder = save_model(kind, tmp_path / kind)
    after = loader.load_weights(folder, CPU, loader.load_config(folder, CPU))
    gpu_precision.quantize(after, tokenizer(), "sdpa")
    config = loader.load_config(folder, CPU)
    while_reading = loader.load_weights(folder, CPU, config, quantization_config=float8_config())
    expected, actual = float8_tensors(after), float8_tensors(while_reading)
    assert expected.keys() == actual.keys() and expected
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor)
    assert gpu_precision.quantize(while_reading, tokenizer(), "sdpa") == "fp8"
    layout = KVCacheLayout(while_reading)
    probe_runner(Miniature(while_reading), layout.kinds)
    create_runner(while_reading, layout, CacheSize(2, 64))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_what_becomes_float8_is_counted_before(kind: str, tmp_path: Path) -> None:
    folder = save_model(kind, tmp_path / kind)
    loaded = loader.load_weights(
        folder, CPU, loader.load_config(folder, CPU), quantization_config=float8_config()
    )
    layers = [layer for layer in loaded.modules() if type(layer) is Float8Linear]
    counted = count_float8_weights(loader.load_config(folder, CPU))
    assert counted == sum(layer.weight.numel() for layer in layers) > 0


@pytest.mark.parametrize(
    ("precision", "room", "expected"),
    [
        ("fp8", "bfloat16", {}),
        ("fp8", "float8", {"quantization_config": Float8Config}),
        ("fp8", "less", "need 0.1 MB, and there is room for 0.1 MB on cuda:0: end what else"),
        ("bfloat16", "float8", "--model smollm2-135m-instruct, or --precision fp8, which has room"),
        ("bfloat16", "less", "--model smollm2-135m-instruct$"),
    ],
)
def test_weights_are_quantized_as_they_are_read_where_else_they_have_no_room(
    precision: str,
    room: str,
    expected: dict[str, type] | str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The embedding, the head and norms stay as they are, so one byte a weight is too little."""
    folder = save_model("llama", tmp_path / "llama")
    config = loader.load_config(folder, CPU)
    wide = read_headers(folder).bytes_in(torch.bfloat16)
    free = {"bfloat16": wide, "float8": wide - count_float8_weights(config)}
    free["less"] = free["float8"] - 1
    assert free["less"] > wide // 2
    monkeypatch.setattr(gpu_precision, "check", lambda _: precision)
    monkeypatch.setattr(loader, "has_float8_products", lambda _: True)
    monkeypatch.setattr(room_module, "free_room", lambda *_: free[room])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    if isinstance(expected, str):
        with pytest.raises(EngineUnavailable, match=expected):
            loader._room_options(folder, config, [GPU])
    else:
        options = loader._room_options(folder, config, [GPU])
        assert {name: type(value) for name, value in options.items()} == expected
