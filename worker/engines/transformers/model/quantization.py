"""In which numbers a CPU computes a model: the fastest of those that leave its answers as they are.

Chosen at the start, by a short measurement on the model's own layers, and proved by its own answers: on a paragraph of
plain English the next-token distributions may differ from float32's by no more than stands for a perplexity 2 % worse.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
import torch
from torch import nn

from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model.fused_norms import fuse_norms
from worker.engines.transformers.model.quantized_linear import (
    HEADS,
    WAYS,
    Table,
    Unable,
    fits_table,
)

log = structlog.get_logger(__name__)

AUTO, EXACT = "auto", "float32"
CHOICES = (AUTO, *WAYS)
WORSE = 0.02  # by how much a perplexity may be worse where nobody chose
_CANDIDATES = (EXACT, "bfloat16", "int8")  # of auto; the others cost more than that
_WORTH = 10_000_000  # weights: a smaller model is fast as it is
_ROUNDS, _SECONDS = (
    (3, 8),
    1.0,
)  # a measurement ends with this time, but for the least and the most rounds
_TRY_SECONDS = 0.005
_PARAGRAPH = (
    "The old harbour had been quiet for years before the ferries came back. On the first morning a small crowd stood "
    "on the pier, some with coffee, some with cameras, and watched the white ship turn slowly towards the town. Nobody "
    "knew whether enough people would pay for the crossing, but the baker had already hired two more hands."
)

Layers = dict[str, Any]  # by their names in the model
Clock = Callable[[nn.Module, int], float]  # runs a layer on a number of rows: seconds


def asked() -> str:
    """CANOPY_PRECISION. Raises EngineUnavailable."""
    wanted = os.environ.get("CANOPY_PRECISION") or AUTO
    if wanted not in CHOICES:
        raise EngineUnavailable(
            f"CANOPY_PRECISION must be one of {', '.join(CHOICES)}, not {wanted!r}"
        )
    return wanted


def settle(
    model: Any, tokenizer: Any, slots: int, attention: str, clock: Clock | None = None
) -> str:
    """Chooses, and makes the float32 `model` compute so; returns what was chosen. `attention`: the library's, for the
    proof. Only modules are replaced: whoever keeps the former ones has the former model. Raises EngineUnavailable.
    """
    wanted = asked()
    linears = _linears(model)
    weights = sum(layer.weight.numel() for layer in linears.values())
    if wanted == EXACT or not linears or (wanted == AUTO and weights < _WORTH):
        return EXACT
    with torch.inference_mode():
        ids = tokenizer(_PARAGRAPH, return_tensors="pt")["input_ids"]
        if wanted == AUTO:
            chosen = _choose(model, linears, slots, ids, attention, clock or time_layer)
        else:
            chosen = _obey(model, linears, wanted, ids, attention)
        if chosen != EXACT:
            _lighten(model)
    return chosen


def _lighten(model: Any) -> None:
    """What costs nothing, once the library's own numbers are not kept to the last bit anyway."""
    embedding = model.get_input_embeddings()
    if fits_table(embedding):  # a head that shared it does so no longer
        model.set_input_embeddings(Table(embedding))
    fuse_norms(model)


def _choose(
    model: Any, linears: Layers, slots: int, ids: torch.Tensor, attention: str, clock: Clock
) -> str:
    """The fastest way that is precise enough; the model computes so."""
    samples = _samples(model, linears)
    seconds = measure(samples, linears, slots, clock)
    shown = {way: [round(1000 * each, 1) for each in both] for way, both in seconds.items()}
    for way in sorted(seconds, key=lambda way: math.prod(seconds[way])):
        if way == EXACT:
            break
        worse = _try(model, linears, way, samples.get(way, {}), ids, attention)
        if worse <= WORSE:
            log.info(
                "precision",
                chosen=way,
                perplexity=f"+{worse:.1%}",
                milliseconds=shown,
                rows=[1, slots],
            )
            return way
        log.warning("not precise enough", precision=way, perplexity=f"+{worse:.1%}")
        _replace(model, linears)
    log.info("precision", chosen=EXACT, milliseconds=shown, rows=[1, slots])
    return EXACT


def _obey(model: Any, linears: Layers, way: str, ids: torch.Tensor, attention: str) -> str:
    """What the operator asked for, whatever it costs, which is said."""
    try:
        worse = _try(model, linears, way, {}, ids, attention)
    except Unable as error:
        raise EngineUnavailable(f"CANOPY_PRECISION={way} cannot be had here: {error}") from error
    log.info("precision", chosen=way, asked=True, perplexity=f"+{worse:.1%}")
    return way


def _samples(model: Any, linears: Layers) -> dict[str, Layers]:
    """The head and the largest other layer, in each way that works here."""
    head = model.get_output_embeddings()
    others = [name for name, layer in linears.items() if layer is not head]
    typical = max(others, key=lambda name: linears[name].weight.numel(), default=None)
    names = [name for name in linears if linears[name] is head or name == typical]
    found = {}
    for way in _CANDIDATES:
        try:
            found[way] = {name: _computed(model, way, linears[name]) for name in names}
            for layer in found[way].values():
                time_layer(layer, 1)
        except Unable as error:
            log.info("precision not possible", precision=way, reason=str(error))
            found.pop(way, None)
    return found


def measure(
    samples: dict[str, Layers], linears: Layers, slots: int, clock: Clock
) -> dict[str, list[float]]:
    """Seconds that the linear layers of a step take in each way, for one row and for `slots`. Of a layer of which there
    are more, the sample stands for all: in proportion to the weights.

    The ways take turns and the best of their rounds counts, so that whatever else the machine is doing meets them all.
    """
    names = list(next(iter(samples.values())))
    best: dict[tuple[str, str, int], float] = {}
    until = time.perf_counter() + _SECONDS
    for done in range(1, _ROUNDS[1] + 1):
        for way, layers in samples.items():
            for name, layer in layers.items():
                for rows in (1, slots):
                    key = (way, name, rows)
                    best[key] = min(best.get(key, math.inf), clock(layer, rows))
        if done >= _ROUNDS[0] and time.perf_counter() > until:
            break
    times = _times(names, linears)
    return {
        way: [sum(times[name] * best[way, name, rows] for name in names) for rows in (1, slots)]
        for way in samples
    }


def _times(names: list[str], linears: Layers) -> dict[str, float]:
    """How often a step computes what each sample stands for: the smallest stands for all that are not samples."""
    sizes = {name: layer.weight.numel() for name, layer in linears.items()}
    smallest = min(names, key=sizes.__getitem__)
    others = sum(size for name, size in sizes.items() if name not in names)
    return {name: 1.0 + (others / sizes[name] if name == smallest else 0.0) for name in names}


def time_layer(layer: nn.Module, rows: int) -> float:
    """Seconds that `layer` takes for so many rows. Small layers run more often: threads that wait for one which
    something else keeps from running lose whole slices of time, so a single run may say nothing.
    """
    inputs = torch.ones(rows, layer.in_features)
    best, until = math.inf, time.perf_counter() + _TRY_SECONDS
    while True:
        began = time.perf_counter()
        layer(inputs[:])  # an object of its own, as in a step
        ended = time.perf_counter()
        best = min(best, ended - began)
        if ended > until:
            return best


def distance(exact: torch.Tensor, other: torch.Tensor) -> float:
    """By how much a perplexity gets worse, as a part of it, where `other` logits [tokens, vocabulary] stand for `exact`
    ones: the mean divergence of the distributions is how much more, in nats, a text of the model's own would surprise.
    """
    p, q = exact.float().log_softmax(-1), other.float().log_softmax(-1)
    nats = float((p.exp() * (p - q)).sum(-1).mean())
    return math.inf if math.isnan(nats) else math.expm1(min(50.0, nats))


def _try(
    model: Any, linears: Layers, way: str, made: Layers, ids: torch.Tensor, attention: str
) -> float:
    """Makes the model compute so, but for what is `made` already; how much worse its perplexity is. Raises Unable."""
    with _library(model, attention):
        exact = model(input_ids=ids, use_cache=False).logits[0]
        _replace(
            model,
            {name: made.get(name) or _computed(model, way, each) for name, each in linears.items()},
        )
        return distance(exact, model(input_ids=ids, use_cache=False).logits[0])


def _computed(model: Any, way: str, layer: nn.Linear) -> nn.Module:
    """`layer` in another way. Raises Unable."""
    if layer is model.get_output_embeddings() and way in HEADS:
        return HEADS[way](layer)
    return WAYS[way](layer)


def _linears(model: Any) -> Layers:
    """Not subclasses, which compute something of their own."""
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}


def _replace(model: Any, layers: Layers) -> None:
    for name, layer in layers.items():
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, layer)


@contextmanager
def _library(model: Any, attention: str) -> Iterator[None]:
    """The library's own attention meanwhile."""
    ours = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        yield
    finally:
        model.set_attn_implementation(ours)
