"""Eight-bit floating-point numbers: four bits of exponent, three of mantissa, at most 448.

Micikevicius et al., FP8 Formats for Deep Learning, 2022, https://arxiv.org/abs/2209.05433
"""

import torch

FLOAT8 = torch.float8_e4m3fn
MAX_FLOAT8 = torch.finfo(FLOAT8).max
_MIN_CAPABILITY = (8, 9)  # Ada: the first that converts and multiplies such numbers
_SMALLEST = 1e-12  # of a scale: a row of zeros has one, too
_ROWS_AT_A_TIME = 4096  # converted together: a float32 copy of a weight has four times its size


def has_float8_products(device: torch.device) -> bool:
    """Whether `device` is a GPU that converts to float8 and multiplies it."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY


def round_to_float8(values: torch.Tensor) -> torch.Tensor:
    """Clamps, as a value out of range may become NaN otherwise."""
    return values.clamp(-MAX_FLOAT8, MAX_FLOAT8).to(FLOAT8)


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`rows` [rows, inputs] as float8, and what to multiply each row with: float32 [rows, 1].

    Plain operations, which torch.compile fuses with whatever computed the rows.
    """
    exact = rows.float()
    scales = exact.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST) / MAX_FLOAT8
    return round_to_float8(exact / scales), scales


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix as `quantize_rows` makes it, some of its rows at a time."""
    quantized = torch.empty(weight.shape, dtype=FLOAT8, device=weight.device)
    scales = torch.empty((len(weight), 1), dtype=torch.float32, device=weight.device)
    for start in range(0, len(weight), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        quantized[part], scales[part] = quantize_rows(weight[part])
    return quantized, scales
