"""The ways in which a CPU computes a model's linear layers: other numbers in memory, the same layer to its caller.

A decoding step reads every weight once, so it takes about as long as the memory needs to tell them: half the bytes are
half the time, a quarter a quarter. What comes in and goes out stays float32.
"""

import copy
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from worker.errors import one_line

ALL_LEVELS = 127  # of a number of 8 bits, on either side of 0
_ROWS = 16384  # of a weight turned into whole numbers at a time: a copy of all of them would cost twice the memory


class Unable(Exception):
    """This machine, or this torch, cannot compute so; the text says why."""


class BFloat16(nn.Module):
    """Weights and inputs in bfloat16: fast where the CPU has instructions for it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self._weight = linear.weight.detach().to(torch.bfloat16)
        self._bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(hidden.to(torch.bfloat16), self._weight, self._bias).to(
            hidden.dtype
        )


class _Seen(NamedTuple):
    """What the layer before made of its input: queries, keys and values are often projected from the same."""

    hidden: torch.Tensor  # kept, so that no other tensor can be the same object
    way: tuple[int, int]
    whole: torch.Tensor
    steps: torch.Tensor


_local = threading.local()


class Int8(nn.Module):
    """Weights as whole numbers of 8 bits, with a scale for each output; inputs as two such numbers, the digits of one
    of 16 bits, with a scale for each token.

    A token's scale is its own, never its batch's, and sums of whole numbers are exact: so what is computed for a row
    does not depend on who else is in the step, to the last bit.
    """

    digits = 2

    def __init__(self, linear: nn.Linear) -> None:
        """Raises Unable."""
        super().__init__()
        self.in_features, self._outputs = linear.in_features, linear.out_features
        self._levels = levels()
        weight = linear.weight.detach()
        self._scales = _steps(weight, 127)[:, 0].contiguous()
        whole = torch.empty(weight.shape, dtype=torch.int8)
        for at in range(0, len(weight), _ROWS):
            part = slice(at, at + _ROWS)
            whole[part] = (weight[part] / self._scales[part, None]).round_()
        self._weight = _pack(whole)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._bias = None if linear.bias is None else linear.bias.detach().clone()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        seen: _Seen | None = getattr(_local, "seen", None)
        if seen is None or seen.hidden is not hidden or seen.way != (self.digits, self._levels):
            seen = _local.seen = _Seen(hidden, (self.digits, self._levels), *self._whole(hidden))
        out = _multiply(seen.whole, self._levels + 1, self._weight, self._scales, self._zeros)
        if self.digits == 2:  # both were one product of twice the rows: the weights are read once
            count = len(seen.steps)
            out = out[:count].add_(out[count:], alpha=2 * (self._levels + 1))
        out = out.mul_(seen.steps)
        if self._bias is not None:
            out.add_(self._bias)
        return out.view(*hidden.shape[:-1], self._outputs)

    def _whole(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The inputs in whole numbers from 0 up, as the operation wants them, and the steps [rows, 1]."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        if self.digits == 2:
            return _two_digits(rows, self._levels)
        steps = _steps(rows, self._levels)
        return (rows / steps).add_(self._levels + 1.5).to(
            torch.uint8
        ), steps  # cut off after adding a half: rounded


class Int8Fast(Int8):
    """With the coarse number alone. Outliers among the inputs of a layer then cost the others their digits."""

    digits = 1


Way = Callable[[nn.Linear], nn.Module]
WAYS: dict[str, Way] = {
    "float32": lambda linear: linear,
    "bfloat16": BFloat16,
    "int8": Int8,
    "int8-fast": Int8Fast,
}
# The layer that ends in the vocabulary is computed otherwise: nothing is computed from what it makes, so an error there
# does not grow, and for many rows half of the products are half of its time.
# Without VNNI one digit has 7 bits, and an error of a coarse head alone would cost the model 2 % of its perplexity.
HEADS: dict[str, Way] = {
    "int8": lambda linear: Int8Fast(linear) if levels() == ALL_LEVELS else Int8(linear)
}


class Table(nn.Module):
    """An embedding whose rows are kept in bfloat16, and looked up as before."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._rows = embedding.weight.detach().to(torch.bfloat16)
        self._lookup = copy.copy(embedding)  # a subclass may scale what it has looked up
        self._lookup._parameters = {"weight": nn.Parameter(torch.empty(0), requires_grad=False)}
        self._lookup.padding_idx = None  # of training; it is beyond the few rows of a step

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self._rows[ids.flatten()].float()
        places = torch.arange(len(rows)).view(ids.shape)
        found: torch.Tensor = torch.func.functional_call(self._lookup, {"weight": rows}, (places,))
        return found


def fits_table(embedding: nn.Module | None) -> bool:
    """Whether nothing is lost: most models are published in bfloat16, and float32 only repeats that."""
    if not isinstance(embedding, nn.Embedding) or embedding.max_norm is not None:
        return False
    weight = embedding.weight.detach()
    parts = (weight[at : at + _ROWS] for at in range(0, len(weight), _ROWS))
    return all(torch.equal(part.to(torch.bfloat16).to(part.dtype), part) for part in parts)


def levels() -> int:
    """How many steps an input may have on either side of 0. Without VNNI a CPU adds pairs of products into 16 bits, and
    cuts what is greater: there inputs get half as many steps, so that nothing is. Raises Unable.
    """
    weight = _pack(torch.full((16, 64), 127, dtype=torch.int8))
    ones, zeros = torch.ones(16), torch.zeros(16, dtype=torch.int32)
    for most in (ALL_LEVELS, 63):
        inputs = torch.full((2, 64), 2 * most + 1, dtype=torch.uint8)
        if bool((_multiply(inputs, most + 1, weight, ones, zeros) == most * 127 * 64).all()):
            return most
    raise Unable("its products of 8-bit numbers are not exact")


def _steps(rows: torch.Tensor, most: int) -> torch.Tensor:
    """[rows, 1] the size of a step, if the greatest number of a row is to be `most` of them."""
    return rows.abs().amax(-1, keepdim=True).clamp_(min=1e-20).div_(most)


def _two_digits(rows: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`rows` in steps of their own, in two digits of `levels` on either side of `levels` + 1: first all low ones, then
    all high ones [twice the rows, inputs]; and the steps [rows, 1].
    """
    base = 2 * (levels + 1)  # 256, or 128
    steps = _steps(rows, levels * base)
    # One half, so that cutting off rounds; half a base, so that the low digit, too, lies around its middle.
    numbers = (rows / steps).add_((levels + 1) * (base + 1) + 0.5)
    if base == 256:  # the digits are the bytes
        digits = numbers.to(torch.uint16).view(torch.uint8).view(*rows.shape, 2)
        if sys.byteorder == "big":
            digits = digits.flip(-1)
    else:
        whole = numbers.int()
        digits = torch.stack((whole % base, whole // base), -1).to(torch.uint8)
    return digits.permute(2, 0, 1).reshape(-1, rows.shape[-1]), steps


def _pack(whole: torch.Tensor) -> torch.Tensor:
    """Weights [outputs, inputs] in the order in which the CPU's kernels read them. Raises Unable."""
    try:
        packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(whole, None)
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        raise Unable(f"no 8-bit products in this torch: {one_line(error)}") from error
    return packed


def _multiply(
    inputs: torch.Tensor, zero: int, weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> torch.Tensor:
    """(`inputs` - `zero`) times the weights, each output times its scale: float32 [rows, outputs]. Raises Unable."""
    try:
        out: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            inputs, 1.0, zero, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        raise Unable(f"no 8-bit products on this CPU: {one_line(error)}") from error
    return out
