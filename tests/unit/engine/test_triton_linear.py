"""Products of few rows without a GPU: Triton's interpreter runs their kernel, against torch."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.unit.engine.interpreted import interpreted

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
_BOUNDS = {F32: 1e-5, F16: 4e-3, BF16: 3e-2}  # the interpreter truncates bfloat16


@pytest.fixture(scope="module")
def kernels() -> Iterator[Any]:
    with interpreted("triton_linear", "linear_kernels") as module:
        yield module


def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    bound = _BOUNDS[actual.dtype]
    torch.testing.assert_close(actual.float(), expected, rtol=bound, atol=bound)


def factors(rows: int, columns: int, inner: int, dtype: torch.dtype) -> tuple[Any, Any]:
    torch.manual_seed(rows + columns + inner)
    x = torch.randn(rows, inner + 8).to(dtype)[:, :inner]  # a row's end is not the next one's start
    return x, (torch.randn(columns, inner) * inner**-0.5).to(dtype)


@pytest.mark.parametrize("method", ["dot", "swapped"])
@pytest.mark.parametrize(
    ("rows", "columns", "inner", "split", "dtype"),
    [
        (1, 48, 96, 1, F32),
        (5, 33, 70, 3, F32),
        (33, 64, 128, 2, BF16),
        (64, 20, 40, 1, F16),
        (16, 16, 300, 4, F16),
    ],
)
def test_linear(
    kernels: Any, rows: int, columns: int, inner: int, split: int, dtype: torch.dtype, method: str
) -> None:
    x, weight = factors(rows, columns, inner, dtype)
    tile = kernels.Tile(16, 32, split, 4, 2, method)
    check(kernels.linear(x, weight, tile=tile), x.float() @ weight.float().T)


@pytest.mark.parametrize("split", [1, 3])
def test_one_row_as_a_sum(kernels: Any, split: int) -> None:
    x, weight = factors(1, 50, 200, BF16)
    tile = kernels.Tile(8, 64, split, 4, 2, "sum")
    check(kernels.linear(x, weight, tile=tile), x.float() @ weight.float().T)


@pytest.mark.parametrize("method", ["dot", "swapped"])
@pytest.mark.parametrize("split", [1, 2])
def test_scales_and_bias(kernels: Any, method: str, split: int) -> None:
    x, weight = factors(3, 40, 64, F32)
    scale, x_scale, bias = torch.rand(40) + 1, torch.rand(3) + 1, torch.randn(40)
    tile = kernels.Tile(16, 32, split, 4, 2, method)
    expected = x @ weight.T * scale * x_scale[:, None] + bias
    check(kernels.linear(x, weight, scale, bias, x_scale=x_scale, tile=tile), expected)


@pytest.mark.parametrize("rows_too", [False, True])
def test_float8(kernels: Any, rows_too: bool) -> None:
    x, weight = factors(3, 40, 64, F16)
    weight = (weight * 100).to(torch.float8_e4m3fn)
    if rows_too:
        x = x.to(torch.float8_e4m3fn)
    scale = torch.rand(40) / 100
    actual = kernels.linear(x, weight, scale, dtype=F16, tile=kernels.Tile(16, 32, 1, 4, 2))
    check(actual, x.float() @ weight.float().T * scale)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("silu", functional.silu),
        ("gelu", functional.gelu),
        ("gelu_tanh", partial(functional.gelu, approximate="tanh")),
        ("relu", functional.relu),
    ],
)
@pytest.mark.parametrize("method", ["dot", "swapped"])
def test_gated(kernels: Any, activation: str, function: Any, method: str) -> None:
    x, weight = factors(3, 80, 70, F32)
    bias = torch.randn(80)
    gate, up = (x @ weight.T + bias).chunk(2, -1)
    tile = kernels.Tile(16, 32, 1, 4, 2, method)
    actual = kernels.linear(x, weight, bias=bias, activation=activation, tile=tile)
    check(actual, function(gate) * up)


@pytest.mark.parametrize("bias", [False, True])
def test_gated_float8_row_is_that_of_two_kernels(kernels: Any, bias: bool) -> None:
    x, weight = factors(1, 80, 70, BF16)
    weight, scale = (weight * 100).to(torch.float8_e4m3fn), torch.rand(80) / 100
    added = torch.randn(80) if bias else None
    tile = kernels.Tile(8, 64, 1, 4, 2, "sum")
    together = kernels.linear(x, weight, scale, added, activation="silu", tile=tile)
    gate, up = kernels.linear(x, weight, scale, added, tile=tile).chunk(2, -1)
    check(together, kernels.activate(gate, up, "silu").float())
    exact = x.float() @ weight.float().T * scale + (0 if added is None else added)
    check(together, functional.silu(exact[:, :40]) * exact[:, 40:])


@pytest.mark.parametrize("split", [1, 3])
def test_a_row_does_not_depend_on_the_others(kernels: Any, split: int) -> None:
    x, weight = factors(9, 32, 192, F32)
    tile = kernels.Tile(16, 32, split, 4, 2)
    expected = kernels.linear(x, weight, tile=tile)
    x[:4] = x[5:].clone()
    actual = kernels.linear(x, weight, tile=tile)
    assert torch.equal(actual[4], expected[4])
    assert torch.equal(actual[:4], expected[5:])


def test_gates_of_many_rows(kernels: Any) -> None:
    gate, up = torch.randn(70, 1100), torch.randn(70, 1100)
    check(kernels.activate(gate, up, "silu"), functional.silu(gate) * up)
