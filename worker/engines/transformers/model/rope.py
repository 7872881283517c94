"""Rotary embeddings whose frequencies depend on the length: chosen by sequence, not by call.

The library looks at the largest position of a call (longrope: other factors beyond the original
length; dynamic NTK: a base that grows with the length), and its calls hold one sequence. A step
holds tokens of many sequences, so each token gets the frequencies of its own sequence's length, as
far as that is known when the token is computed: the whole prompt, then the answer up to the token.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from worker.engines.transformers.model.attention import current_step

_LONGROPE, _DYNAMIC = "longrope", "dynamic"  # the library's names of rope types


class RopeLimit(NamedTuple):
    """Up to which length sequences are computed with the same frequencies."""

    tokens: int
    switched: bool  # beyond it there is one other set of frequencies; False: one for each length
    prefill_again: bool = False  # what `generate` does with a sequence that outgrows it

    def group(self, length: int) -> int:
        """Sequences of one group have the same keys for the same tokens; -1 shares with none."""
        if length <= self.tokens:
            return 0
        if self.switched:
            return 1
        return -1


class PerSequenceRope(nn.Module):
    """Replaces a rotary module of the library. For a sequence by itself it is that module, as if no
    other sequence had been computed before.
    """

    def __init__(self, library: Any) -> None:
        super().__init__()
        self.library = library  # never called itself if it keeps state

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor, **kwargs: Any) -> Any:
        """What the library returns: one tensor [1, tokens, head size], or a tuple of them."""
        limit = _limit(self.library, kwargs.get("layer_type"))
        step = current_step()
        if limit is None or step is None:
            return self._stateless()(hidden, position_ids, **kwargs)
        lengths = step.on(position_ids.device).known_lengths
        embeddings = self._for_length(limit.tokens, hidden, position_ids, kwargs)
        if limit.switched:
            beyond = self._with_position(limit.tokens, hidden, position_ids, kwargs)
            return _where(lengths > limit.tokens, beyond, embeddings)
        for length in sorted(set(lengths[lengths > limit.tokens].tolist())):
            longer = self._for_length(length, hidden, position_ids, kwargs)
            embeddings = _where(lengths == length, longer, embeddings)
        return embeddings

    def limits(self) -> list[RopeLimit]:
        """Of every layer type that has one."""
        layer_types: list[str | None] = [None]
        if isinstance(self.library.rope_type, dict):
            layer_types = list(self.library.rope_type)
        limits = []
        for layer_type in layer_types:
            limit = _limit(self.library, layer_type)
            if limit is not None:
                limits.append(limit)
        return limits

    def _for_length(
        self, length: int, hidden: torch.Tensor, position_ids: torch.Tensor, kwargs: Any
    ) -> Any:
        """Right for the tokens of a sequence of that length."""
        last = length - 1
        return self._with_position(last, hidden, position_ids.clamp(max=last), kwargs)

    def _with_position(
        self, position: int, hidden: torch.Tensor, position_ids: torch.Tensor, kwargs: Any
    ) -> Any:
        """As if the sequence also had a token at `position`; it is dropped from the result."""
        extra = torch.full_like(position_ids[..., :1], position)
        embeddings = self._stateless()(hidden, torch.cat([position_ids, extra], dim=-1), **kwargs)
        if isinstance(embeddings, tuple):
            return tuple(tensor[:, :-1] for tensor in embeddings)
        return embeddings[:, :-1]

    def _stateless(self) -> Any:
        """The library's module; a copy if it is dynamic, which keeps frequencies between calls."""
        if _DYNAMIC in str(self.library.rope_type):
            return copy.deepcopy(self.library)
        return self.library


def choose_by_sequence(model: Any) -> RopeLimit | None:
    """Makes each sequence's frequencies independent of the other sequences'. Returns the length up
    to which all sequences share them; None: they always do. May be called again.
    """
    for name, module in list(model.named_modules()):
        path, _, attribute = name.rpartition(".")
        parent = model.get_submodule(path)
        if _depends_on_length(module) and not isinstance(parent, PerSequenceRope):
            setattr(parent, attribute, PerSequenceRope(module))
    limits: list[RopeLimit] = []
    for module in model.modules():
        if isinstance(module, PerSequenceRope):
            limits += module.limits()
    if not limits:
        return None
    switched = len(set(limits)) == 1 and limits[0].switched
    return RopeLimit(min(limit.tokens for limit in limits), switched)


def _depends_on_length(module: Any) -> bool:
    """Whether it is a rotary module of the library whose frequencies depend on the length."""
    rope_type = getattr(module, "rope_type", None)
    if isinstance(rope_type, dict):
        return any(_is_length_dependent(name) for name in rope_type.values())
    return _is_length_dependent(rope_type)


def _is_length_dependent(rope_type: Any) -> bool:
    return rope_type == _LONGROPE or _DYNAMIC in str(rope_type)


def _limit(library: Any, layer_type: str | None) -> RopeLimit | None:
    rope_type = library.rope_type
    if isinstance(rope_type, dict):
        rope_type = rope_type[layer_type]
    if rope_type == _LONGROPE:
        parameters = library.config.rope_parameters
        if layer_type is not None:
            parameters = parameters[layer_type]
        return RopeLimit(int(parameters["original_max_position_embeddings"]), switched=True)
    if _DYNAMIC in str(rope_type):
        return RopeLimit(int(library.original_max_seq_len), switched=False)
    return None


def _where(condition: torch.Tensor, chosen: Any, otherwise: Any) -> Any:
    """Per token: `condition` [tokens]."""
    mask = condition[None, :, None]
    if isinstance(chosen, tuple):
        pairs = zip(chosen, otherwise, strict=True)
        return tuple(torch.where(mask, first, second) for first, second in pairs)
    return torch.where(mask, chosen, otherwise)
