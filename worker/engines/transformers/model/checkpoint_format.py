"""Published checkpoints whose weights are quantized: how transformers is to load each, as its own
quantizers can and this device can compute, decided before any weights are read.
"""

import sys
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import settings
from worker.engines.transformers.model.float8 import has_float8_products
from worker.engines.transformers.model.gpu_precision import BFLOAT16, CHOICES, FP8

COMPRESSED, FBGEMM, FINEGRAINED = "compressed-tensors", "fbgemm_fp8", "fp8"
_ROW_STRATEGIES = ("channel", "tensor")  # of a group's scales, in compressed-tensors' words
_USUAL_PACKED_BITS = 4
_NAMES = ("modules_to_not_convert", "ignore")  # settings that are lists of layers
_MOST_SHOWN = 40  # characters of a name from a file


class Package(NamedTuple):
    """What pip calls it, and Python."""

    name: str
    module: str


_COMPRESSED_TENSORS = Package("compressed-tensors", "compressed_tensors")
_GPTQMODEL = Package("gptqmodel", "gptqmodel")
_PACKAGES = {
    COMPRESSED: (_COMPRESSED_TENSORS,),
    FBGEMM: (_COMPRESSED_TENSORS,),  # see `_as_compressed_tensors`
    "awq": (_GPTQMODEL,),
    "gptq": (_GPTQMODEL, Package("optimum", "optimum")),
}
_KERNELS = Package("kernels", "kernels")


def choose_loading(config: PretrainedConfig, device: torch.device, *, divided: bool) -> None:
    """Changes the quantization settings of `config`, if it has some, to what transformers can load
    for `device`. `divided`: among several processes, each of which has a part of every layer.

    Reads no weights. Raises EngineUnavailable where a package is missing, or for a format that
    nothing here knows.
    """
    owner = _owner(config)
    if owner is None:
        return
    quantization: dict[str, Any] = dict(owner.quantization_config)
    _check_names(quantization)
    method = str(quantization.get("quant_method", ""))
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING and not _is_bitsandbytes(quantization):
        raise EngineUnavailable(
            f"its weights are quantized as {method[:_MOST_SHOWN]!r}, which transformers cannot "
            "load; take a checkpoint in bfloat16, FP8, AWQ, GPTQ or compressed-tensors"
        )
    _require(method, _PACKAGES.get(method, ()))
    precision = _precision(device)
    if method == FINEGRAINED:
        quantization["dequantize"] = _dequantizes_blocks(device, precision)
    elif method in (COMPRESSED, FBGEMM):
        if method == FBGEMM:
            quantization = _as_compressed_tensors(quantization)
        native = not divided and precision != BFLOAT16 and _has_row_scales(quantization)
        native = native and has_float8_products(device)
        quantization |= {"dequantize": not native, "use_optimized_inference": native}
    owner.quantization_config = quantization


def packed_bits(config: PretrainedConfig) -> int | None:
    """Of a packed integer, where `choose_loading` has quantized weights dequantized as they are
    read; None: they are kept as they are. The smallest, where layers differ.
    """
    owner = _owner(config)
    if owner is None or not owner.quantization_config.get("dequantize"):
        return None
    bits: list[int] = []
    groups = owner.quantization_config.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        number = weights.get("num_bits") if isinstance(weights, dict) else None
        if type(number) is int and 0 < number <= 8:
            bits.append(number)
    return min(bits, default=_USUAL_PACKED_BITS)


def _owner(config: PretrainedConfig) -> PretrainedConfig | None:
    """The config that has quantization settings: the model's, or that of its text part."""
    for candidate in (config, config.get_text_config(decoder=True)):
        if isinstance(getattr(candidate, "quantization_config", None), dict):
            return candidate
    return None


def _check_names(quantization: dict[str, Any]) -> None:
    """Raises EngineUnavailable for what would fail somewhere in transformers."""
    for setting in _NAMES:
        names = quantization.get(setting)
        valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if names is not None and not valid:
            raise EngineUnavailable(
                f"in its config.json {setting} must be a list of names, not "
                f"{str(names)[:_MOST_SHOWN]!r}"
            )


def _is_bitsandbytes(quantization: dict[str, Any]) -> bool:
    """Its settings have no method of a name."""
    return bool(quantization.get("load_in_8bit") or quantization.get("load_in_4bit"))


def _precision(device: torch.device) -> str:
    """What the operator asks for on a GPU."""
    if device.type != "cuda":
        return settings.AUTO
    return settings.precision(CHOICES, "on a GPU")


def _require(method: str, packages: tuple[Package, ...]) -> None:
    """Raises EngineUnavailable if one is missing."""
    missing = [package.name for package in packages if find_spec(package.module) is None]
    if missing:
        raise EngineUnavailable(
            f"its weights are quantized as {method}, which needs: "
            f"{sys.executable} -m pip install {' '.join(missing)}"
        )


def _dequantizes_blocks(device: torch.device, precision: str) -> bool:
    """Weights with a scale for each block. The library multiplies them by kernels of its own;
    otherwise they are dequantized, and with `--precision fp8` get a scale for each output instead.
    """
    if device.type != "cuda" or precision in (BFLOAT16, FP8) or not has_float8_products(device):
        return True
    if find_spec(_KERNELS.module) is not None:
        return False
    raise EngineUnavailable(
        "its weights are float8 with a scale for each block: say --precision fp8 (a scale for each "
        "output instead) or --precision bfloat16 (twice the memory), or install the library's "
        f"kernels: {sys.executable} -m pip install {_KERNELS.name}"
    )


def _has_row_scales(quantization: dict[str, Any]) -> bool:
    """Whether all quantized layers of a compressed-tensors checkpoint have float8 weights with a
    scale for each output, or one for all: what the library's layer, and ours, multiplies.
    """
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        return False
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            return False
        if (weights.get("type"), weights.get("num_bits")) != ("float", 8):
            return False
        if weights.get("strategy") not in _ROW_STRATEGIES:
            return False
    return True


def _as_compressed_tensors(quantization: dict[str, Any]) -> dict[str, Any]:
    """The settings of FBGEMM's checkpoints in the words of compressed-tensors, which stores the
    same: float8 weights with a scale for each output. Its loader runs on every device.
    """
    ignored: list[str] = quantization.get("modules_to_not_convert") or ["lm_head"]
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    inputs = {**weights, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": COMPRESSED,
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignored,
    }
