"""How many tokens of prompts a step computes at most, and how fast."""

import time

import structlog
import torch

from worker.engines.transformers.model.loaded import ModelRunner
from worker.engines.transformers.model.step import PrefillChunk

log = structlog.get_logger(__name__)

_CPU_PREFILL_TOKENS = 256
_GPU_PREFILL_TOKENS = 2048
_TRIALS = 3


def prefill_tokens(runner: ModelRunner | None, device: torch.device) -> int:
    """How many tokens of prompts a step computes at most."""
    if device.type == "cpu":
        return _CPU_PREFILL_TOKENS
    if runner is None:
        return _GPU_PREFILL_TOKENS
    return min(_GPU_PREFILL_TOKENS, runner.context)


def measure_prefill_speed(runner: ModelRunner | None, device: torch.device) -> float | None:
    """Tokens a second, on a GPU; None on a CPU, where the first prompts show it."""
    if device.type == "cpu" or runner is None:
        return None
    tokens = prefill_tokens(runner, device)
    with torch.inference_mode():
        seconds = min(_time_prefill(runner, tokens) for _ in range(_TRIALS))
    log.info("prefill", tokens=tokens, milliseconds=round(1000 * seconds, 1))
    return tokens / seconds


def _time_prefill(runner: ModelRunner, tokens: int) -> float:
    """Seconds, measured in the spare slot, whose number is that of the slots."""
    torch.accelerator.synchronize(runner.device)
    began = time.perf_counter()
    runner.prefill([PrefillChunk(runner.slots, 0, tokens)], [[0] * tokens], [True])
    torch.accelerator.synchronize(runner.device)
    return time.perf_counter() - began
