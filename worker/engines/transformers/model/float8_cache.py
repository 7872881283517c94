"""Keys and values in float8: half the memory of bfloat16, so twice the tokens, and half the bytes
that attention reads.

Each layer has a scale for its keys and one for its values, calibrated on a paragraph of English.
With a fixed scale of 1 some models' keys would be out of range, and other models' values so small
that they lose digits. Scales are powers of two, so that scaling itself rounds nothing.
"""

import math
from typing import Any

import structlog
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import settings
from worker.engines.transformers.model.float8 import (
    FLOAT8,
    MAX_FLOAT8,
    has_float8_products,
    round_to_float8,
)
from worker.engines.transformers.model.kv_cache import KVCacheLayout, KVScales, attention_function
from worker.engines.transformers.model.perplexity import PARAGRAPH, perplexity_loss

log = structlog.get_logger(__name__)

FP8 = "fp8"
GPU_CHOICES = (settings.AUTO, "bfloat16", FP8)
CPU_CHOICES = (settings.AUTO, "float32")
_HEADROOM = 2.0  # other texts may have larger numbers; beyond it they are clamped
_RECORDER = "canopy_float8_cache"  # the attention function that rounds keys and values


def is_requested(device: torch.device) -> bool:
    """Whether the operator asks for it. Raises EngineUnavailable if `device` has no such numbers,
    or for another format that it has not.
    """
    if device.type != "cuda":
        settings.kv_cache_dtype(CPU_CHOICES, "on a CPU")
        return False
    if settings.kv_cache_dtype(GPU_CHOICES, "on a GPU") != FP8:
        return False
    if not has_float8_products(device):
        raise EngineUnavailable(
            f"--kv-cache-dtype fp8 needs an Ada or Hopper GPU or a later one; take bfloat16 on "
            f"{torch.cuda.get_device_name(device)}"
        )
    return True


def use_float8(model: Any, tokenizer: Any, layout: KVCacheLayout) -> float:
    """`layout` keeps keys and values in float8 from now on. Returns how much worse the perplexity
    of a paragraph is, which is logged, too.
    """
    ids = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"].to(model.device)
    recorder = _Recorder()
    with torch.inference_mode(), attention_function(model, _RECORDER, recorder.attend):
        exact = model(input_ids=ids, use_cache=False).logits[0]
        recorder.round()
        rounded = model(input_ids=ids, use_cache=False).logits[0]
    layout.dtype = FLOAT8
    layout.scales = {module: recorder.scales[module] for module in layout.shapes}
    loss = perplexity_loss(exact, rounded)
    log.info("kv cache", dtype=FP8, perplexity=f"+{loss:.1%}")
    return loss


class _Recorder:
    """Computes a model's attention, first exactly, then with rounded keys and values."""

    def __init__(self) -> None:
        self.scales: dict[Any, KVScales] = {}
        self._peaks: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def round(self) -> None:
        """From now on, with scales that follow from what has been computed so far."""
        for module, (key, value) in self._peaks.items():
            self.scales[module] = KVScales(_scale(float(key)), _scale(float(value)))

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        """Called by transformers, as `attention.attention_forward` is."""
        if module in self.scales:
            key = _rounded(key, self.scales[module].key)
            value = _rounded(value, self.scales[module].value)
        else:
            self._peaks[module] = (key.abs().amax(), value.abs().amax())
        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **more
        )
        return out


def _scale(peak: float) -> float:
    """The power of two by which to divide numbers of at most `peak`."""
    if not 0 < peak < math.inf:
        return 1.0
    return 2.0 ** math.ceil(math.log2(peak * _HEADROOM / MAX_FLOAT8))


def _rounded(numbers: torch.Tensor, scale: float) -> torch.Tensor:
    return round_to_float8(numbers / scale).to(numbers.dtype) * scale
