"""The positions of a packed step, for attention modules that count tokens by themselves.

Llama 4 makes queries larger the further into a sequence they are, and takes a token's position to
be its index in the call plus what the cache holds. In a packed step each token has an offset of its
own.
"""

from typing import Any

import torch


class PackedPositions:
    """Passed to a model as its `past_key_values`: keeps nothing, as `attend` does that."""

    def __init__(self, positions: torch.Tensor) -> None:
        """`positions` [tokens]: of each token in its sequence."""
        self._offsets = positions - torch.arange(len(positions), device=positions.device)

    def get_seq_length(self, layer_idx: int = 0) -> torch.Tensor:
        """[tokens] what a token's index has to be increased by to give its position."""
        return self._offsets

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of the call alone."""
        return key_states, value_states


def counts_tokens(module: Any) -> bool:
    """Whether an attention module takes positions from the cache."""
    return bool(getattr(module, "attn_temperature_tuning", False))
