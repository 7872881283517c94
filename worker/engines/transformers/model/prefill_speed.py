"""How many tokens of prompts a step computes at most, and how fast."""

import time

import structlog
import torch

from worker.engines.transformers.model.cuda_graphs import GRAPH_STEP_TOKENS
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


def measure_step_seconds(runner: ModelRunner | None, device: torch.device) -> dict[int, float]:
    """Seconds of a GPU's step by the tokens of a prompt in it; empty on a CPU, where the first
    prompts show it. More tokens at once are not always cheaper each: it depends on the libraries.
    """
    if device.type == "cpu" or runner is None:
        return {}
    largest = prefill_tokens(runner, device)
    seconds: dict[int, float] = {}
    with torch.inference_mode():
        for tokens in GRAPH_STEP_TOKENS:
            if tokens <= largest:
                seconds[tokens] = min(_time_prefill(runner, tokens) for _ in range(_TRIALS))
    milliseconds = {tokens: round(1000 * each, 1) for tokens, each in seconds.items()}
    log.info("prefill", milliseconds=milliseconds)
    return seconds


def _time_prefill(runner: ModelRunner, tokens: int) -> float:
    """Seconds, measured in the spare slot, whose number is that of the slots."""
    torch.accelerator.synchronize(runner.device)
    began = time.perf_counter()
    runner.prefill([PrefillChunk(runner.slots, 0, tokens)], [[0] * tokens], [True])
    torch.accelerator.synchronize(runner.device)
    return time.perf_counter() - began
