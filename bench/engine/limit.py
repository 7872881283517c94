"""The memory's limit: a decoding step reads all weights, and every row's keys and values, once.

No step is faster than its bytes over the device's bandwidth. Computation is left out: with so few
rows it hides behind the reads.
"""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

_COPY_BYTES = {"cuda": 2 << 30, "cpu": 256 << 20}  # far beyond every cache
_COPIES = 9


@dataclass(frozen=True, slots=True)
class Layer:
    """One attention layer's keys and values. `window`: tokens it looks back at most; None: all."""

    bytes_per_token: int
    window: int | None


@dataclass(frozen=True, slots=True)
class StepReads:
    """What a step reads."""

    weights: int  # bytes
    layers: tuple[Layer, ...]

    def kv(self, rows: int, context: float) -> float:
        """Bytes of keys and values, for `rows` rows of `context` tokens each."""
        total = 0.0
        for layer in self.layers:
            total += layer.bytes_per_token * min(context, layer.window or context)
        return rows * total

    @property
    def bytes_per_token(self) -> int:
        """Of one row, while every layer keeps the token."""
        return sum(layer.bytes_per_token for layer in self.layers)


def step_reads(model: Any) -> StepReads:
    """From the model's parameters and configuration.

    The input embeddings are left out unless they are the output's, too: a step reads a row each.
    """
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is not None and table.weight is not output.weight:
        weights -= table.weight.numel() * table.weight.element_size()
    return StepReads(weights, layers(model.config.get_text_config(), model.dtype.itemsize))


def layers(config: Any, itemsize: int) -> tuple[Layer, ...]:
    """The attention layers of a configuration, `itemsize` bytes a number."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:  # Qwen names one it does not use
        window = None
    kinds = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
    per_token = 2 * heads * size * itemsize
    return tuple(Layer(per_token, None if kind == "full_attention" else window) for kind in kinds)


def bandwidth(device: str) -> float:
    """Bytes a second of a large copy within the device, read and written, median of several."""
    import torch

    place = torch.device(device)
    size = _COPY_BYTES.get(place.type, _COPY_BYTES["cpu"])
    if place.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(place)[0] // 4)
    source = torch.ones(size, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    target.copy_(source)  # the first touches the pages
    return 2 * size / median(_copy_seconds(target, source) for _ in range(_COPIES))


def _copy_seconds(target: Any, source: Any) -> float:
    import torch

    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
    began = time.perf_counter()
    target.copy_(source)
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
    return time.perf_counter() - began
