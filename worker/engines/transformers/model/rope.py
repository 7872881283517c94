"""Rotary embeddings whose frequencies depend on the length: chosen by sequence, not by call.

The library looks at the greatest position of a call (longrope: beyond the original length other
factors; dynamic NTK: a base that grows with the length), and its calls hold one sequence. Ours hold
pieces of prompts and tokens of many sequences, so each token gets the frequencies of its own
sequence's length, as far as that is known when it is computed: of a prompt all of it, of an answer
up to the token.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from worker.engines.transformers.model import attention

_SWITCHED, _GROWING = "longrope", "dynamic"  # as the library calls them


class LengthLimit(NamedTuple):
    """How long sequences are computed alike."""

    tokens: int  # up to so many, all have the same frequencies
    switched: bool  # and beyond, too; else they differ with every length
    reread: bool = False  # a sequence that grows beyond it is read anew, with the other frequencies

    def group(self, length: int) -> int:
        """Prompts of one group have the same keys where their tokens are; -1: with nobody's."""
        if length <= self.tokens:
            return 0
        return 1 if self.switched else -1


class LengthRope(nn.Module):
    """Stands where a rotary module of the library stood. For a sequence by itself it is that module,
    as if no other sequence had been computed before.
    """

    def __init__(self, library: Any) -> None:
        super().__init__()
        self.library = library  # never called itself if it keeps a state

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor, **named: Any) -> Any:
        """What the library returns: tensors [1, tokens, size], one or several."""
        limit = _limit(self.library, named.get("layer_type"))
        step = attention.current()
        if limit is None or step is None:
            return self._fresh()(hidden, position_ids, **named)
        reach = step.on(position_ids.device).reach
        made = self._within(limit.tokens, hidden, position_ids, named)
        if limit.switched:
            beyond = self._with(limit.tokens, hidden, position_ids, named)
            return _where(reach > limit.tokens, beyond, made)
        for length in sorted(set(reach[reach > limit.tokens].tolist())):
            longer = self._within(length, hidden, position_ids, named)
            made = _where(reach == length, longer, made)
        return made

    def limits(self) -> list[LengthLimit]:
        """Of all its kinds of layers."""
        types = self.library.rope_type
        names = list(types) if isinstance(types, dict) else [None]
        found = [_limit(self.library, name) for name in names]
        return [limit for limit in found if limit is not None]

    def _within(
        self, length: int, hidden: torch.Tensor, position_ids: torch.Tensor, named: Any
    ) -> Any:
        """Right for tokens of a sequence of that length."""
        return self._with(length - 1, hidden, position_ids.clamp(max=length - 1), named)

    def _with(self, last: int, hidden: torch.Tensor, position_ids: torch.Tensor, named: Any) -> Any:
        """As if the sequence had a token at position `last`, too: it goes behind the others, and what
        is made of it is taken off again.
        """
        position = torch.full_like(position_ids[..., :1], last)
        made = self._fresh()(hidden, torch.cat([position_ids, position], dim=-1), **named)
        return _each(lambda tensor: tensor[:, :-1], made)

    def _fresh(self) -> Any:
        """Dynamic frequencies are kept from call to call, so such a call gets a module of its own."""
        keeps = _GROWING in str(self.library.rope_type)
        return copy.deepcopy(self.library) if keeps else self.library


def choose_by_sequence(model: Any) -> LengthLimit | None:
    """Makes the frequencies of each sequence independent of the others'; up to which length they are
    the same for all, or None if they always are.
    """
    for name, module in list(model.named_modules()):
        path, _, last = name.rpartition(".")
        parent = model.get_submodule(path)
        if _depends(module) and not isinstance(parent, LengthRope):
            setattr(parent, last, LengthRope(module))
    ropes = [module for module in model.modules() if isinstance(module, LengthRope)]
    limits = [limit for rope in ropes for limit in rope.limits()]
    if not limits:
        return None
    switched = len(set(limits)) == 1 and limits[0].switched
    return LengthLimit(min(limit.tokens for limit in limits), switched)


def _depends(module: Any) -> bool:
    """A rotary module of the library whose frequencies depend on the length."""
    types = getattr(module, "rope_type", None)
    named = list(types.values()) if isinstance(types, dict) else [types]
    return any(_GROWING in str(each) or each == _SWITCHED for each in named)


def _limit(library: Any, layer_type: str | None) -> LengthLimit | None:
    types = library.rope_type
    kind = str(types[layer_type] if isinstance(types, dict) else types)
    if kind == _SWITCHED:
        settings = library.config.rope_parameters
        if layer_type is not None:
            settings = settings[layer_type]
        return LengthLimit(int(settings["original_max_position_embeddings"]), switched=True)
    if _GROWING in kind:
        return LengthLimit(int(library.original_max_seq_len), switched=False)
    return None


def _where(chosen: torch.Tensor, some: Any, others: Any) -> Any:
    """By token: `chosen` [tokens]."""
    if isinstance(some, tuple):
        pairs = zip(some, others, strict=True)
        return tuple(torch.where(chosen[None, :, None], one, other) for one, other in pairs)
    return torch.where(chosen[None, :, None], some, others)


def _each(change: Callable[[torch.Tensor], torch.Tensor], made: Any) -> Any:
    return tuple(change(tensor) for tensor in made) if isinstance(made, tuple) else change(made)
