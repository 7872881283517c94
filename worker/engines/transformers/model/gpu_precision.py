"""In which numbers a GPU computes a model: bfloat16, or float8 where the operator asks for it.

Nothing is chosen silently: `auto` is what the model was loaded in.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import structlog
import torch
from torch import nn
from transformers.integrations.compressed_tensors import CompressedTensorsFP8Linear

from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import settings
from worker.engines.transformers.model.float8 import quantize_rows, quantize_weight
from worker.engines.transformers.model.float8_linear import (
    DIVISOR,
    Float8Linear,
    from_linear,
    multiply_rows,
)
from worker.engines.transformers.model.perplexity import (
    PARAGRAPH,
    attention_of,
    perplexity_loss,
)
from worker.errors import one_line

log = structlog.get_logger(__name__)

BFLOAT16, FP8 = "bfloat16", "fp8"
CHOICES = (settings.AUTO, BFLOAT16, FP8)
# Routers choose experts: they are small, and an error there changes everything after it.
_ROUTERS = ("gate", "router")


class Place(NamedTuple):
    """Where a layer is in the model."""

    parent: Any
    attribute: str


def check(device: torch.device) -> str:
    """What the operator asks for. Reads no weights; raises EngineUnavailable if `device` cannot
    compute it.
    """
    chosen = settings.precision(CHOICES, "on a GPU")
    if chosen == FP8:
        _check_products(device)
    return chosen


def _check_products(device: torch.device) -> None:
    rows = torch.ones((DIVISOR, DIVISOR), dtype=torch.bfloat16, device=device)
    try:
        multiply_rows(*quantize_rows(rows), *quantize_weight(rows), None)
    except torch.OutOfMemoryError as error:
        raise EngineUnavailable(f"{device} has no memory left: {one_line(error)}") from error
    except (RuntimeError, ValueError) as error:  # torch's names for what a GPU cannot do
        raise EngineUnavailable(
            f"--precision fp8 needs a GPU with 8-bit products (Ada, Hopper or later); take "
            f"--precision bfloat16 on {device}: {one_line(error)}"
        ) from error


def quantize(model: Any, tokenizer: Any, library_attention: str) -> str:
    """Replaces the linear layers of the repeated blocks of `model`, if the operator asks for it or
    they were published so, one by one: there are never two copies of more than one of them.
    Returns the format, or "" for the one that it was loaded in. `library_attention`: to compare
    with. Raises EngineUnavailable.
    """
    requested = check(model.device)
    if requested == BFLOAT16:
        return ""
    adopted = _adopt_published(model)
    if adopted:
        log.info("precision", chosen=FP8, published=True, layers=adopted)
        return FP8
    if requested != FP8:
        return ""
    if any(type(module) is Float8Linear for module in model.modules()):  # see `float8_loading`
        log.info("precision", chosen=FP8, perplexity="not measured: no room for bfloat16")
        return FP8
    places = list(find_places(model))
    if not places:
        raise EngineUnavailable(
            f"{type(model).__name__} has no linear layers that --precision fp8 could compute; "
            "take --precision bfloat16"
        )
    with torch.no_grad(), attention_of(model, library_attention):
        loss = _replace(model, tokenizer, places)
    torch.cuda.empty_cache()  # what the wide weights took is counted as free from here on
    log.info("precision", chosen=FP8, asked=True, perplexity=f"+{loss:.1%}", layers=len(places))
    return FP8


def _adopt_published(model: Any) -> int:
    """Lets our layers compute what the library loaded in float8: weights with a scale for each
    output. Returns how many there are.
    """
    adopted = 0
    for path, module in list(model.named_modules()):
        if type(module) is CompressedTensorsFP8Linear and not _odd(module):
            scales = module.weight_scale.detach().reshape(-1, 1).float()
            bias = None if module.bias is None else module.bias.detach()
            layer = Float8Linear(module.weight.detach(), scales, bias)
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer)
            adopted += 1
    return adopted


def _odd(layer: nn.Linear) -> bool:
    """Whether the tensor cores cannot take its sizes."""
    return any(size % DIVISOR for size in layer.weight.shape)


def _replace(model: Any, tokenizer: Any, places: list[Place]) -> float:
    """Returns how much worse the perplexity is."""
    ids = _paragraph(tokenizer).to(model.device)
    exact = model(input_ids=ids, use_cache=False).logits[0]
    for place in places:
        layer = from_linear(getattr(place.parent, place.attribute))
        setattr(place.parent, place.attribute, layer)
    rounded = model(input_ids=ids, use_cache=False).logits[0]
    return perplexity_loss(exact, rounded)


def _paragraph(tokenizer: Any) -> torch.Tensor:
    """[1, tokens]: with several rows the inputs are rounded, too."""
    ids: torch.Tensor = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"]
    return ids


def find_places(model: Any) -> Iterator[Place]:
    """The linear layers inside a list of layers, of sizes that the tensor cores take, without
    routers and those that are kept in more digits than the model.
    """
    head = model.get_output_embeddings()
    exact = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    for path, module in model.named_modules():
        parts = path.split(".")
        repeated = any(part.isdecimal() for part in parts)
        if not repeated or type(module) is not nn.Linear or module is head:
            continue
        if any(part in _ROUTERS for part in parts) or any(name in path for name in exact):
            continue
        if _odd(module) or module.weight.dtype != model.dtype:
            continue
        yield Place(model.get_submodule(".".join(parts[:-1])), parts[-1])
