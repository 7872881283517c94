"""Quantization schemes: linear layers with other number formats in a CPU's memory, and float32
inputs and outputs.

A decoding step reads every weight once, so it is bound by memory bandwidth: half the bytes are half
the time, a quarter of them a quarter.

torchao (0.18, torch 2.13) was measured and is not used. A layer of 2048 x 5632, two cores of an AMD
EPYC, shared with other work; milliseconds for 1 and 16 rows, and the error of the output in its
standard deviations:

                                   with VNNI             without (ONEDNN_MAX_CPU_ISA=AVX512_CORE)
    float32                         2.3    5.8   0        2.5   11.0   0
    Int8                            0.14   0.91  0.004    0.54   1.7   0.004
    torchao, int8 weights          14.8   18.7   0.004   33.1   34.8   0.004
    torchao, dynamic int8          14.8   15.7   0.009   38.3   26.1   0.12
    torchao, dynamic, compiled      0.60   1.5   0.009    0.61  40.9   0.12

Only compiled it comes near, and compiling takes longer than a node's whole start. Its single 8-bit
input is coarser than two digits, and without VNNI its sums saturate, which costs the model.
"""

import copy
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from worker.engines.transformers.model import int4_linear
from worker.engines.transformers.model.errors import UnsupportedScheme
from worker.errors import one_line

MAX_LEVEL = 127  # of an 8-bit number, on either side of 0
_MAX_LEVEL_WITHOUT_VNNI = 63
_ROWS_AT_A_TIME = 16384  # converted together: a copy of a whole weight would cost twice its memory


class BFloat16(nn.Module):
    """Weights and inputs in bfloat16: fast where the CPU has instructions for it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self._weight = linear.weight.detach().to(torch.bfloat16)
        self._bias: torch.Tensor | None = None
        if linear.bias is not None:
            self._bias = linear.bias.detach().to(torch.bfloat16)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out = functional.linear(hidden.to(torch.bfloat16), self._weight, self._bias)
        return out.to(hidden.dtype)


class _QuantizedInput(NamedTuple):
    """The latest input, which the next layer often shares: queries, keys and values do."""

    hidden: torch.Tensor  # kept, so that no other tensor can become the same object
    format: tuple[int, int]  # digits, max level
    digits: torch.Tensor  # [digits * rows, inputs] uint8
    scales: torch.Tensor  # [rows, 1]


_local = threading.local()


class Int8(nn.Module):
    """Weights as 8-bit integers with a scale for each output; inputs as 16-bit integers, in two
    8-bit digits, with a scale for each token.

    A token's scale is its own, never its batch's, and sums of integers are exact: so a row's result
    is bit-identical whatever the batch.
    """

    digits = 2

    def __init__(self, linear: nn.Linear) -> None:
        """Raises UnsupportedScheme."""
        super().__init__()
        self.in_features, self._out_features = linear.in_features, linear.out_features
        self._max_level = max_input_level()
        weight = linear.weight.detach()
        self._scales = _scales(weight, MAX_LEVEL)[:, 0].contiguous()
        quantized = torch.empty(weight.shape, dtype=torch.int8)
        for start in range(0, len(weight), _ROWS_AT_A_TIME):
            part = slice(start, start + _ROWS_AT_A_TIME)
            quantized[part] = (weight[part] / self._scales[part, None]).round_()
        self._weight = _prepack(quantized)
        self._zero_points = torch.zeros(len(weight), dtype=torch.int32)
        self._bias: torch.Tensor | None = None
        if linear.bias is not None:
            self._bias = linear.bias.detach().clone()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        quantized = self._quantized(hidden)
        zero_point = self._max_level + 1
        out = _multiply(quantized.digits, zero_point, self._weight, self._scales, self._zero_points)
        if self.digits == 2:  # both digits were one product of twice the rows
            count = len(quantized.scales)
            out = out[:count].add_(out[count:], alpha=2 * zero_point)
        out = out.mul_(quantized.scales)
        if self._bias is not None:
            out.add_(self._bias)
        return out.view(*hidden.shape[:-1], self._out_features)

    def _quantized(self, hidden: torch.Tensor) -> _QuantizedInput:
        latest: _QuantizedInput | None = getattr(_local, "latest_input", None)
        own_format = (self.digits, self._max_level)
        if latest is None or latest.hidden is not hidden or latest.format != own_format:
            rows = hidden.reshape(-1, hidden.shape[-1])
            digits, scales = self._quantize(rows)
            latest = _local.latest_input = _QuantizedInput(hidden, own_format, digits, scales)
        return latest

    def _quantize(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Digits from 0 up, as the operation takes them, and scales [rows, 1]."""
        return _two_digits(rows, self._max_level)


class Int8Fast(Int8):
    """With the high digit alone: an outlier among a token's inputs costs the others precision."""

    digits = 1

    def _quantize(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scales = _scales(rows, self._max_level)
        shifted = (rows / scales).add_(self._max_level + 1.5)  # the half: truncation rounds
        return shifted.to(torch.uint8), scales


def _float32(linear: nn.Linear) -> nn.Module:
    return linear


def _int4(linear: nn.Linear) -> nn.Module:
    """Layers of a size that the operation does not take stay in 8 bits."""
    if not int4_linear.divides(linear):
        return Int8(linear)
    return int4_linear.Int4(linear, prefill=Int8(linear))


Scheme = Callable[[nn.Linear], nn.Module]
SCHEMES: dict[str, Scheme] = {
    "float32": _float32,
    "bfloat16": BFloat16,
    "int8": Int8,
    "int8-fast": Int8Fast,
    "int4": _int4,
}
# where the output layer's differs: 4 bits there cost SmolLM2-135M 6 % of its perplexity
HEAD_SCHEMES: dict[str, Scheme] = {"int4": Int8}


class BFloat16Embedding(nn.Module):
    """An embedding whose table is kept in bfloat16, and looked up in float32."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._table = embedding.weight.detach().to(torch.bfloat16)
        self._lookup = copy.copy(embedding)  # a subclass may scale what it looks up
        self._lookup._parameters = {"weight": nn.Parameter(torch.empty(0), requires_grad=False)}
        self._lookup.padding_idx = None  # only training uses it

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self._table[ids.flatten()].float()
        indices = torch.arange(len(rows)).view(ids.shape)
        embedded: torch.Tensor = torch.func.functional_call(
            self._lookup, {"weight": rows}, (indices,)
        )
        return embedded


def is_exact_in_bfloat16(embedding: nn.Module | None) -> bool:
    """Whether nothing is lost: most models are published in bfloat16."""
    if not isinstance(embedding, nn.Embedding) or embedding.max_norm is not None:
        return False
    weight = embedding.weight.detach()
    for start in range(0, len(weight), _ROWS_AT_A_TIME):
        part = weight[start : start + _ROWS_AT_A_TIME]
        if not torch.equal(part.to(torch.bfloat16).to(part.dtype), part):
            return False
    return True


def max_input_level() -> int:
    """How many levels an input may have on either side of 0. Without VNNI a CPU adds pairs of
    products in 16 bits and saturates: there inputs get half the levels. Raises UnsupportedScheme.
    """
    weight = _prepack(torch.full((16, 64), MAX_LEVEL, dtype=torch.int8))
    scales, zero_points = torch.ones(16), torch.zeros(16, dtype=torch.int32)
    for max_level in (MAX_LEVEL, _MAX_LEVEL_WITHOUT_VNNI):
        inputs = torch.full((2, 64), 2 * max_level + 1, dtype=torch.uint8)
        products = _multiply(inputs, max_level + 1, weight, scales, zero_points)
        if bool((products == max_level * MAX_LEVEL * 64).all()):
            return max_level
    raise UnsupportedScheme("its products of 8-bit numbers are not exact")


def _scales(rows: torch.Tensor, max_level: int) -> torch.Tensor:
    """[rows, 1] the size of a level, if the largest number of a row is at `max_level`."""
    return rows.abs().amax(-1, keepdim=True).clamp_(min=1e-20).div_(max_level)


def _two_digits(rows: torch.Tensor, max_level: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`rows` as integers of two digits, each from 0 to 2 * max_level + 1: first all low ones, then
    all high ones [2 * rows, inputs]. And the scales [rows, 1].
    """
    base = 2 * (max_level + 1)  # 256, or 128
    scales = _scales(rows, max_level * base)
    # The half makes truncation round; half a base centres the low digit.
    shifted = (rows / scales).add_((max_level + 1) * (base + 1) + 0.5)
    if base == 256:  # the digits are the bytes
        digits = shifted.to(torch.uint16).view(torch.uint8).view(*rows.shape, 2)
        if sys.byteorder == "big":
            digits = digits.flip(-1)
    else:
        integers = shifted.int()
        digits = torch.stack((integers % base, integers // base), -1).to(torch.uint8)
    return digits.permute(2, 0, 1).reshape(-1, rows.shape[-1]), scales


def _prepack(weight: torch.Tensor) -> torch.Tensor:
    """int8 [outputs, inputs] in the order that the kernels read. Raises UnsupportedScheme."""
    try:
        packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedScheme(f"no 8-bit products in this torch: {one_line(error)}") from error
    return packed


def _multiply(
    inputs: torch.Tensor,
    zero_point: int,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
) -> torch.Tensor:
    """(`inputs` - `zero_point`) times the weights, each output times its scale: float32
    [rows, outputs]. Raises UnsupportedScheme.
    """
    try:
        out: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            inputs, 1.0, zero_point, weight, scales, zero_points,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedScheme(f"no 8-bit products on this CPU: {one_line(error)}") from error
    return out
