"""Chooses the CPU number format: the fastest that keeps the model's perplexity.

At the start each quantization scheme is timed on the model's own layers. The fastest is then
checked on a paragraph of plain English: its next-token distributions may differ from float32's by
no more than corresponds to a perplexity 1 % worse.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import structlog
import torch
from torch import nn

from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import settings
from worker.engines.transformers.model.errors import UnsupportedScheme
from worker.engines.transformers.model.fused_layers import fuse_layers, shorten_lookups
from worker.engines.transformers.model.fused_norms import fuse_norms
from worker.engines.transformers.model.int4_linear import MAX_DECODING_ROWS
from worker.engines.transformers.model.perplexity import (
    PARAGRAPH,
    attention_of,
    perplexity_loss,
)
from worker.engines.transformers.model.quantized_linear import (
    HEAD_SCHEMES,
    SCHEMES,
    BFloat16Embedding,
    is_exact_in_bfloat16,
)

log = structlog.get_logger(__name__)

EXACT = "float32"
CHOICES = (settings.AUTO, *SCHEMES)
MAX_LOSS = 0.01  # by how much the perplexity may get worse where nobody chose
_CANDIDATES = (EXACT, "bfloat16", "int8", "int4")  # of auto: `int8-fast` loses more
# Where `int4` and `int8` are about as fast, nodes of one machine would choose differently, and a
# seed would say something else on the next node: so `int4` has to be clearly faster. Not by more:
# a layer that is timed alone has its weights in the cache, which flatters `int8`.
_HANDICAPS = {"int4": 1.1}
_MIN_WEIGHTS = 10_000_000  # a smaller model is fast as it is
_MIN_ROUNDS, _MAX_ROUNDS = 3, 8  # of the measurement,
_ROUND_SECONDS = 1.0  # which ends after this time in between
_LAYER_SECONDS = 0.005  # for one layer in one round

Layers = dict[str, Any]  # by their names in the model
Timer = Callable[[nn.Module, int], float]  # seconds that a layer takes for a number of rows


class StepSeconds(NamedTuple):
    """What the linear layers of a decoding step take."""

    single: float  # with one row
    full: float  # with all slots

    @property
    def rank(self) -> float:
        """The schemes are ordered by it: both ends count the same."""
        return self.single * self.full


def quantize(
    model: Any, tokenizer: Any, slots: int, library_attention: str, timer: Timer | None = None
) -> str:
    """Chooses a scheme, applies it to the float32 `model` and returns its name. In float32 the
    model's modules stay the library's. `library_attention`: for the check. Raises
    EngineUnavailable.
    """
    chosen = settings.precision(CHOICES, "on a CPU")
    linears = _linears(model)
    weights = sum(layer.weight.numel() for layer in linears.values())
    if chosen == EXACT or not linears or (chosen == settings.AUTO and weights < _MIN_WEIGHTS):
        return EXACT
    # More of them would be computed as a prompt, in another format than the answers.
    ids = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"][:, :MAX_DECODING_ROWS]
    replaced = fuse_layers(model, library_attention)
    quantizer = _Quantizer(model, _linears(model), ids, library_attention)
    with torch.inference_mode():
        if chosen == settings.AUTO:
            chosen = quantizer.apply_fastest(slots, timer or time_layer)
        else:
            quantizer.apply_requested(chosen)
        if chosen != EXACT:
            _shrink_the_rest(model)
    if chosen == EXACT:
        for replacement in replaced:
            replacement.undo()
    else:
        for replacement in replaced:
            replacement.keep()
        shorten_lookups(model)
    return chosen


def _shrink_the_rest(model: Any) -> None:
    """What costs no precision, once the library's numbers are not kept to the last bit anyway."""
    embedding = model.get_input_embeddings()
    if is_exact_in_bfloat16(embedding):  # a head that shared the table keeps its own copy
        model.set_input_embeddings(BFloat16Embedding(embedding))
    fuse_norms(model)


class _Quantizer:
    """The linear layers of one model, and their replacement."""

    def __init__(
        self, model: Any, linears: Layers, ids: torch.Tensor, library_attention: str
    ) -> None:
        self._model = model
        self._linears = linears
        self._ids = ids
        self._library_attention = library_attention

    def apply_fastest(self, slots: int, timer: Timer) -> str:
        """Applies the fastest scheme that is precise enough; returns its name."""
        samples = self._samples()
        seconds = measure(samples, self._linears, slots, timer)
        milliseconds = {}
        ranks = {}
        for scheme, step in seconds.items():
            milliseconds[scheme] = [round(1000 * step.single, 1), round(1000 * step.full, 1)]
            ranks[scheme] = step.rank * _HANDICAPS.get(scheme, 1.0)
        for scheme in sorted(ranks, key=ranks.__getitem__):
            if scheme == EXACT:
                break
            loss = self._apply(scheme, samples[scheme])
            if loss <= MAX_LOSS:
                log.info(
                    "precision",
                    chosen=scheme,
                    perplexity=f"+{loss:.1%}",
                    milliseconds=milliseconds,
                    rows=[1, slots],
                )
                return scheme
            log.warning("not precise enough", precision=scheme, perplexity=f"+{loss:.1%}")
            self._replace(self._linears)
        log.info("precision", chosen=EXACT, milliseconds=milliseconds, rows=[1, slots])
        return EXACT

    def apply_requested(self, scheme: str) -> None:
        """Applies what the operator asked for, whatever it costs; the log names the cost."""
        try:
            loss = self._apply(scheme, {})
        except UnsupportedScheme as error:
            raise EngineUnavailable(
                f"CANOPY_PRECISION={scheme} is not supported here: {error}"
            ) from error
        log.info("precision", chosen=scheme, asked=True, perplexity=f"+{loss:.1%}")

    def _samples(self) -> dict[str, Layers]:
        """Per scheme that works here: the output layer and the largest other layer."""
        names = self._sample_names()
        samples = {}
        for scheme in _CANDIDATES:
            layers: Layers = {}
            try:
                for name in names:
                    layers[name] = self._quantized(scheme, self._linears[name])
                    time_layer(layers[name], 1)
            except UnsupportedScheme as error:
                log.info("precision not possible", precision=scheme, reason=str(error))
            else:
                samples[scheme] = layers
        return samples

    def _sample_names(self) -> list[str]:
        """The output layer and the largest other layer, as far as they are there."""
        head = self._model.get_output_embeddings()
        names: list[str] = []
        largest: str | None = None
        most_weights = 0
        for name, layer in self._linears.items():
            if layer is head:
                names.append(name)
            elif layer.weight.numel() > most_weights:
                largest, most_weights = name, layer.weight.numel()
        if largest is not None:
            names.insert(0, largest)
        return names

    def _apply(self, scheme: str, quantized: Layers) -> float:
        """Replaces all layers, with those of `quantized` where it has them. Returns how much worse
        the perplexity is. Raises UnsupportedScheme.
        """
        layers = dict(quantized)
        with attention_of(self._model, self._library_attention):
            exact = self._model(input_ids=self._ids, use_cache=False).logits[0]
            for name, layer in self._linears.items():
                if name not in layers:
                    layers[name] = self._quantized(scheme, layer)
            self._replace(layers)
            rounded = self._model(input_ids=self._ids, use_cache=False).logits[0]
        return perplexity_loss(exact, rounded)

    def _quantized(self, scheme: str, layer: nn.Linear) -> nn.Module:
        """Raises UnsupportedScheme."""
        if layer is self._model.get_output_embeddings() and scheme in HEAD_SCHEMES:
            return HEAD_SCHEMES[scheme](layer)
        return SCHEMES[scheme](layer)

    def _replace(self, layers: Layers) -> None:
        for name, layer in layers.items():
            parent, _, attribute = name.rpartition(".")
            setattr(self._model.get_submodule(parent), attribute, layer)


def measure(
    samples: dict[str, Layers], linears: Layers, slots: int, timer: Timer
) -> dict[str, StepSeconds]:
    """Times the linear layers of a step in each scheme. A sample stands for its share of the
    weights. The schemes take turns and the best of their rounds counts, so that whatever else the
    machine is doing meets them all.
    """
    names = list(next(iter(samples.values())))
    best: dict[tuple[str, str, int], float] = {}
    until = time.perf_counter() + _ROUND_SECONDS
    for rounds in range(1, _MAX_ROUNDS + 1):
        for scheme, layers in samples.items():
            for name, layer in layers.items():
                for rows in (1, slots):
                    key = (scheme, name, rows)
                    best[key] = min(best.get(key, math.inf), timer(layer, rows))
        if rounds >= _MIN_ROUNDS and time.perf_counter() > until:
            break
    counts = _counts(names, linears)
    seconds = {}
    for scheme in samples:
        single = sum(counts[name] * best[scheme, name, 1] for name in names)
        full = sum(counts[name] * best[scheme, name, slots] for name in names)
        seconds[scheme] = StepSeconds(single, full)
    return seconds


def _counts(names: list[str], linears: Layers) -> dict[str, float]:
    """How many layers of a step each sample stands for. The smallest sample stands, by weight, for
    all layers that are no samples.
    """
    sizes = {name: layer.weight.numel() for name, layer in linears.items()}
    unsampled = sum(size for name, size in sizes.items() if name not in names)
    smallest = min(names, key=sizes.__getitem__)
    counts = dict.fromkeys(names, 1.0)
    counts[smallest] += unsampled / sizes[smallest]
    return counts


def time_layer(layer: nn.Module, rows: int) -> float:
    """Seconds that `layer` takes for that many rows: the best of many runs, as a single one may
    lose whole time slices to another process.
    """
    inputs = torch.ones(rows, layer.in_features)
    best, until = math.inf, time.perf_counter() + _LAYER_SECONDS
    while True:
        began = time.perf_counter()
        layer(inputs[:])  # a new tensor object, as in a step
        ended = time.perf_counter()
        best = min(best, ended - began)
        if ended > until:
            return best


def _linears(model: Any) -> Layers:
    """Not subclasses, which compute something of their own."""
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
