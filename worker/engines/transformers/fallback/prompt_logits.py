"""The logits of a prompt's own tokens where there is no runner: a pass of the library over all of
the prompt for each part of them, as a cache may not allow parts of it.
"""

from typing import Any

import torch


def prompt_logits(model: Any, prompt: list[int], start: int, rows: int) -> torch.Tensor:
    """Logits [up to `rows`, vocabulary] after the tokens from `start` on."""
    tokens = torch.tensor([prompt], device=model.device)
    wanted = torch.arange(start, min(start + rows, len(prompt)), device=model.device)
    output = model(input_ids=tokens, use_cache=False, logits_to_keep=wanted)
    logits: torch.Tensor = output.logits[0]
    if len(logits) == len(prompt):  # a model that computes all in any case
        return logits[wanted]
    return logits
