"""Weights that become float8 as they are read, for models that have no room in bfloat16:
transformers hands over each before the next ones are read, so only a few are in memory twice.
"""

from functools import cache
from typing import Any

import torch
import transformers
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from worker.engines.transformers.model.float8 import FLOAT8, quantize_weight
from worker.engines.transformers.model.float8_linear import Float8Linear
from worker.engines.transformers.model.gpu_precision import find_places

_METHOD = "canopy_float8"


class Float8Config(QuantizationConfigMixin):  # type: ignore[misc]
    """For `from_pretrained`; its weights are not quantized on disk."""

    def __init__(self) -> None:
        self.quant_method: Any = _METHOD


class _Quantizer(HfQuantizer):  # type: ignore[misc]
    """What transformers calls while it loads a model."""

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        for place in list(find_places(model)):
            layer = _without_memory(getattr(place.parent, place.attribute))
            setattr(place.parent, place.attribute, layer)
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **more: Any) -> bool:
        path, _, name = param_name.rpartition(".")
        return name == "weight" and type(model.get_submodule(path)) is Float8Linear

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize()

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        self.remove_quantization_config(model)  # a model of ours is no quantized one of the library
        return model

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


class _Quantize(ConversionOps):  # type: ignore[misc]
    """One weight, on the device already."""

    def convert(self, input_dict: dict[str, Any], **_: Any) -> dict[str, torch.Tensor]:
        ((name, value),) = input_dict.items()
        weight, scales = quantize_weight(value[0] if isinstance(value, list) else value)
        return {name: weight, name.removesuffix("weight") + "scales": scales}


@cache
def float8_config() -> Float8Config:
    """Registered with transformers, once."""
    register_quantization_config(_METHOD)(Float8Config)
    register_quantizer(_METHOD)(_Quantizer)
    return Float8Config()


def count_float8_weights(config: Any) -> int:
    """How many weights of a model of that config would become float8. Reads none of them; raises
    what transformers raises.
    """
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    layers = [getattr(place.parent, place.attribute) for place in find_places(model)]
    return sum(layer.weight.numel() for layer in layers)


def _without_memory(linear: Any) -> Float8Linear:
    shape = linear.weight.shape
    with torch.device("meta"):
        weight = torch.empty(shape, dtype=FLOAT8)
        scales = torch.empty((shape[0], 1), dtype=torch.float32)
    return Float8Linear(weight, scales, None if linear.bias is None else linear.bias.detach())
