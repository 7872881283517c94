"""Tiny checkpoints in the formats that quantized models are published in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.unit.engine.tiny import save_model

Tensors = dict[str, torch.Tensor]
Settings = dict[str, Any]
_FLOAT8 = torch.float8_e4m3fn


class Format:
    """How one weight [outputs, inputs] is stored, and what config.json says."""

    def __init__(self, settings: Settings, store: Callable[[torch.Tensor], Tensors]) -> None:
        """`store`: tensors by the end of their names; "dequantized" is what they stand for."""
        self.settings = settings
        self.store = store


def save(form: Format, folder: Path) -> dict[str, torch.Tensor]:
    """Writes a tiny Llama in `form`. Returns its weights, dequantized."""
    save_model("llama", folder)
    file, config = folder / "model.safetensors", folder / "config.json"
    stored: Tensors = {}
    dequantized: Tensors = {}
    for name, tensor in load_file(file).items():
        if not name.endswith("_proj.weight"):
            stored[name] = dequantized[name] = tensor
            continue
        parts = form.store(tensor)
        dequantized[name] = parts.pop("dequantized")
        for ending, part in parts.items():
            stored[name.removesuffix("weight") + ending] = part.contiguous()
    save_file(stored, file, metadata={"format": "pt"})
    settings = json.loads(config.read_text()) | {"quantization_config": form.settings}
    config.write_text(json.dumps(settings))
    return dequantized


def _float8_rows(weight: torch.Tensor) -> Tensors:
    scale = weight.abs().amax(1, keepdim=True) / 448
    quantized = (weight / scale).to(_FLOAT8)
    return {
        "weight": quantized,
        "weight_scale": scale,
        "dequantized": quantized.float() * scale,
    }


def _float8_tensor(weight: torch.Tensor) -> Tensors:
    scale = (weight.abs().max() / 448)[None]
    quantized = (weight / scale).to(_FLOAT8)
    return {"weight": quantized, "weight_scale": scale, "dequantized": quantized.float() * scale}


def _float8_blocks(weight: torch.Tensor) -> Tensors:
    """All of a tiny weight is in one block of 128 x 128."""
    parts = _float8_tensor(weight)
    scale = parts.pop("weight_scale")
    return parts | {"weight_scale_inv": scale[None]}


def _compressed_blocks(weight: torch.Tensor) -> Tensors:
    parts = _float8_tensor(weight)
    return parts | {"weight_scale": parts["weight_scale"][None]}


def _integers(bits: int) -> Callable[[torch.Tensor], Tensors]:
    """With a scale for each group of 16 inputs if they are packed, else for each output."""

    def store(weight: torch.Tensor) -> Tensors:
        most = 2 ** (bits - 1) - 1
        groups = weight.reshape(len(weight), -1, 16 if bits == 4 else weight.shape[1])
        scale = groups.abs().amax(2) / most
        integers = (groups / scale[..., None]).round().to(torch.int8)
        parts = {"weight_scale": scale, "dequantized": (integers * scale[..., None]).flatten(1)}
        if bits == 8:
            return parts | {"weight": integers.flatten(1)}
        packed = _pack_fours(integers.flatten(1))
        return parts | {"weight_packed": packed, "weight_shape": torch.tensor(weight.shape)}

    return store


def _pack_fours(integers: torch.Tensor) -> torch.Tensor:
    """Eight to an int32, the first in the lowest bits, shifted to be positive."""
    nibbles = (integers.int() + 8).view(len(integers), -1, 8)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return (nibbles << shifts).sum(2, dtype=torch.int32)


def compressed(form: str, weights: Settings, inputs: Settings | None = None) -> Settings:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


_ROWS = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
_TOKENS = {**_ROWS, "strategy": "token", "dynamic": True}
_TENSOR = {**_ROWS, "strategy": "tensor"}
_BLOCKS = {**_ROWS, "strategy": "block", "block_structure": [128, 128]}
_INT8 = {**_ROWS, "type": "int"}
_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True}
FORMATS = {
    "compressed float8, rows": Format(compressed("float-quantized", _ROWS, _TOKENS), _float8_rows),
    "compressed float8, one scale": Format(
        compressed("float-quantized", _TENSOR, {**_TENSOR, "dynamic": True}), _float8_tensor
    ),
    "compressed float8, blocks": Format(
        compressed("float-quantized", _BLOCKS, _TOKENS), _compressed_blocks
    ),
    "compressed int8": Format(compressed("int-quantized", _INT8), _integers(8)),
    "compressed int4": Format(compressed("pack-quantized", _INT4), _integers(4)),
    "fbgemm": Format(
        {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}, _float8_rows
    ),
    "float8 blocks": Format(
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head"],
        },
        _float8_blocks,
    ),
}
