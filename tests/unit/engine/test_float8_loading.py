"""Weights that become float8 as they are read are those that become it afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.engine.tiny import save_model, tokenizer
from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import gpu_precision, loader
from worker.engines.transformers.model.cache_size import CacheSize
from worker.engines.transformers.model.float8_linear import Float8Linear
from worker.engines.transformers.model.float8_loading import Float8Config, float8_config
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.miniature import Miniature
from worker.engines.transformers.model.probe import create_runner, probe_runner

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
    after = loader.load_weights(folder, CPU)
    gpu_precision.quantize(after, tokenizer(), "sdpa")
    while_reading = loader.load_weights(folder, CPU, quantization_config=float8_config())
    expected, actual = float8_tensors(after), float8_tensors(while_reading)
    assert expected.keys() == actual.keys() and expected
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor)
    assert gpu_precision.quantize(while_reading, tokenizer(), "sdpa") == "fp8"
    layout = KVCacheLayout(while_reading)
    probe_runner(Miniature(while_reading), layout.kinds)
    create_runner(while_reading, layout, CacheSize(2, 64))


@pytest.mark.parametrize(
    ("precision", "device", "room", "expected"),
    [
        ("fp8", GPU, 4, {}),
        ("fp8", GPU, 1.5, {"quantization_config": Float8Config}),
        ("fp8", GPU, 0.5, None),
        ("fp8", CPU, 1.5, None),
        ("bfloat16", GPU, 1.5, None),
    ],
)
def test_weights_are_quantized_as_they_are_read_where_else_they_have_no_room(
    precision: str,
    device: torch.device,
    room: float,
    expected: dict[str, type] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`room`: bytes for each weight."""
    monkeypatch.setattr(gpu_precision, "check", lambda _: precision)

    def check_room(folder: Path, devices: Any, *, dtype: torch.dtype = torch.bfloat16) -> None:
        if dtype.itemsize > room:
            raise EngineUnavailable("no room")

    monkeypatch.setattr(loader, "check_room", check_room)
    if expected is None:
        with pytest.raises(EngineUnavailable, match="no room"):
            loader._room_options(tmp_path, [device])
    else:
        options = loader._room_options(tmp_path, [device])
        assert {name: type(value) for name, value in options.items()} == expected
