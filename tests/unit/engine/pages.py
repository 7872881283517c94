"""Models on a CPU whose KV cache has blocks, as it has on a GPU."""

from typing import Any

import pytest
import torch

from worker.engines.transformers.model import loader, probe
from worker.engines.transformers.model.runner import LocalModelRunner


def use_pages(patch: pytest.MonkeyPatch, tokens: int | None = None) -> None:
    """From the next `load` on. `tokens`: how many there is memory for."""
    patch.setattr(loader, "uses_pages", lambda _: True)
    patch.setattr(probe, "uses_pages", lambda _: True)
    if tokens is not None:
        patch.setattr(loader, "token_capacity", lambda *_, **__: tokens)


def look_a_step_later(patch: pytest.MonkeyPatch) -> None:
    """The host is a step ahead, as it is on a GPU."""

    def upload(_: Any, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long)

    patch.setattr(LocalModelRunner, "asynchronous", True)
    patch.setattr(LocalModelRunner, "_upload", upload)
