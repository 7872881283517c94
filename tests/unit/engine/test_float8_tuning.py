"""Which tile a float8 layer takes for so many rows. The times are made up: there is no GPU."""

from functools import partial
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn
from triton.runtime.errors import OutOfResources, PTXASError

from worker.engines.transformers.model import float8_linear, float8_tuning
from worker.engines.transformers.model.cuda_graphs import INVARIANT_ROWS
from worker.engines.transformers.model.float8_linear import (
    ROW_BUCKETS,
    Float8Linear,
    choose_tile,
    chosen_gated_tile,
    chosen_tile,
    from_linear,
)
from worker.engines.transformers.model.float8_tuning import (
    _CANDIDATES,
    _GATED,
    time_gated,
    time_layers,
    tune,
)
from worker.engines.transformers.model.fused_mlp import FusedFloat8MLP
from worker.engines.transformers.model.linear_op import ACTIVATIONS
from worker.engines.transformers.model.linear_tiles import Tile


@pytest.fixture(autouse=True)
def _no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8_linear, "_tiles", {})
    monkeypatch.setattr(float8_linear, "_gated_tiles", {})


def model() -> nn.Module:
    shapes = ((32, 48), (32, 48), (32, 64))
    return nn.Sequential(*(from_linear(nn.Linear(*shape).bfloat16()) for shape in shapes))


def tile(layer: Float8Linear, rows: int) -> Tile | None:
    return chosen_tile(layer.weight.shape, rows)


class Timer:
    """Milliseconds of one product after the other; None: the GPU cannot."""

    def __init__(self, *milliseconds: float | None) -> None:
        self._milliseconds = iter(milliseconds)
        self.measured: list[tuple[int, Tile | None, int]] = []

    def __call__(self, layers: list[Float8Linear], rows: int) -> float | None:
        self.measured.append((rows, tile(layers[0], rows), len(layers)))
        return next(self._milliseconds)


def one_layer() -> Any:
    return nn.Sequential(from_linear(nn.Linear(32, 48).bfloat16()))


def test_the_fastest_of_each_size_is_taken() -> None:
    timer = Timer(3.0, 2.0, 1.0, *[4.0] * 100)
    network = one_layer()
    assert tune(network, 128, timer=timer) == 1
    assert [rows for rows, tile, _ in timer.measured if tile is None] == [16, 32, 64]
    assert tile(network[0], 1) == _CANDIDATES[1][1]
    assert tile(network[0], 2) is None  # torch's was the first, and the fastest
    timer = Timer(1.0, 1.0, *[9.0, 9.0, 1.0, 9.0] * 2)
    tune(network, 33, timer=timer)
    assert tile(network[0], 9) == _CANDIDATES[16][1]
    assert tile(network[0], 32) == _CANDIDATES[32][1]
    assert tile(network[0], 257) is None


@pytest.mark.parametrize(
    ("slots", "buckets"),
    [
        (1, []),
        (2, [1]),
        (16, [1]),
        (17, [1, 16]),
        (200, [1, 16, 32, 64, 128]),
        (1024, [1, 16, 32, 64, 128]),
    ],
)
def test_steps_of_a_request_that_names_a_seed_are_not_measured(
    slots: int, buckets: list[int]
) -> None:
    """It gives the same text after another start, so a measurement must not decide there."""
    timer, network = Timer(*[1.0] * 100), one_layer()
    choose_tile(network[0].weight.shape, bucket_of_seeds(slots), _CANDIDATES[16][0])
    tune(network, slots, timer=timer)
    assert sorted({rows for rows, _, _ in timer.measured}) == buckets
    assert tile(network[0], min(slots, INVARIANT_ROWS)) is None


def bucket_of_seeds(slots: int) -> int:
    return min(bucket for bucket in ROW_BUCKETS if bucket >= min(slots, INVARIANT_ROWS))


def test_layers_of_one_size_are_measured_together() -> None:
    timer = Timer(*[1.0] * 12)
    assert tune(model(), 17, timer=timer) == 3
    assert {(rows, layers) for rows, _, layers in timer.measured} == {
        (1, 2),
        (1, 1),
        (16, 2),
        (16, 1),
    }


def test_a_tile_that_the_gpu_cannot_compute_is_passed_over() -> None:
    network = one_layer()
    tune(network, 17, timer=Timer(None, 5.0, 3.0, *[None] * 3))
    assert tile(network[0], 1) == _CANDIDATES[1][1]
    assert tile(network[0], 2) is None


def test_a_tile_that_fails_is_not_kept() -> None:
    def fail(*_: Any) -> float:
        raise RuntimeError("illegal instruction")

    network = one_layer()
    with pytest.raises(RuntimeError):
        tune(network, 2, timer=fail)
    assert tile(network[0], 1) is None


def test_measuring_ends_in_time() -> None:
    """Each look at the clock finds ten seconds gone; what was chosen until then stays."""
    seconds = iter(range(0, 1000, 10))
    timer, network = Timer(*[2.0, 1.0] * 20), one_layer()
    with capture_logs() as logs:
        tune(network, 1024, timer=timer, clock=lambda: float(next(seconds)))
    assert {rows for rows, _, _ in timer.measured} == {1, 16}
    assert any(entry["log_level"] == "warning" for entry in logs)
    assert tile(network[0], 1) == _CANDIDATES[1][1]


# ---- gates and ups of one row


def gated_model() -> Any:
    layers = [
        FusedFloat8MLP(from_linear(nn.Linear(32, 96).bfloat16()), nn.Identity(), "silu")
        for _ in range(2)
    ]
    return nn.Sequential(*layers)


def test_one_rows_gates_are_joined_in_the_product_where_that_is_faster() -> None:
    network, measured = gated_model(), list[tuple[int, Tile | None]]()
    shape = network[0].joined.weight.shape

    def timer(
        times: dict[Tile | None, float | None], layers: list[Float8Linear], activation: str
    ) -> float | None:
        tile = chosen_gated_tile(shape, activation)
        measured.append((len(layers), tile))
        return times[tile]

    none, first, second, third = (None, *_GATED)
    outcomes: list[tuple[dict[Tile | None, float | None], Tile | None]] = [
        ({none: 3.0, first: 2.0, second: 1.0, third: None}, second),
        ({none: 1.0, first: 2.0, second: 1.5, third: 4.0}, None),
    ]
    for times, chosen in outcomes:
        tune(network, 2, timer=Timer(*[1.0] * 100), gated_timer=partial(timer, times))
        assert chosen_gated_tile(shape, "silu") == chosen
    assert measured == [(2, tile) for tile in (none, first, second, third)] * 2
    measured.clear()
    tune(network, 1, timer=Timer(), gated_timer=partial(timer, {}))  # a seed's steps have one row
    assert not measured
    assert chosen_gated_tile(shape, "silu") is None


def test_a_gated_tile_that_fails_is_not_kept() -> None:
    def fail(*_: Any) -> float:
        raise RuntimeError("illegal instruction")

    network = gated_model()
    with pytest.raises(RuntimeError):
        tune(network, 2, timer=Timer(*[1.0] * 100), gated_timer=fail)
    assert chosen_gated_tile(network[0].joined.weight.shape, "silu") is None


def test_gates_that_differ_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = gated_model()[0].joined
    monkeypatch.setattr(float8_tuning, "time_product", lambda *_: 1.5)
    for factor, expected in ((1.0, 1.5), (1.1, None), (float("nan"), None)):
        monkeypatch.setattr(float8_tuning, "multiply_gated_row", partial(_torch_gated, factor))
        assert time_gated([layer], "silu") == expected


# ---- the measurement


@pytest.mark.parametrize(
    "error",
    [
        OutOfResources(200_000, 100_000, "shared memory"),
        PTXASError("PTXAS error: Internal Triton PTX codegen error"),
    ],
)
def test_what_does_not_compile_is_not_for_this_gpu(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> float:
        raise error

    monkeypatch.setattr(float8_tuning, "time_product", fail)
    assert time_layers([*one_layer()], 16) is None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 16])
def test_a_tile_whose_answers_differ_is_not_taken(
    rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = from_linear(nn.Linear(32, 48, bias=bias).bfloat16())
    monkeypatch.setattr(float8_tuning, "time_product", lambda *_: 1.5)
    for factor, expected in ((1.0, 1.5), (1.1, None), (float("nan"), None)):
        for name in ("multiply_row", "multiply_rows"):
            monkeypatch.setattr(float8_tuning, name, partial(_torch_product, factor))
        assert time_layers([layer], rows) == expected


def _torch_product(factor: float, x: torch.Tensor, *factors: Any) -> torch.Tensor:
    *row_scales, weight, scales, bias = factors
    out = x.float() @ (weight.float() * scales).T
    for scale in row_scales:
        out = out * scale
    return (out if bias is None else out + bias) * factor


def _torch_gated(factor: float, x: torch.Tensor, *factors: Any) -> torch.Tensor:
    *weights, activation = factors
    gate, up = _torch_product(1.0, x, *weights).chunk(2, -1)
    return ACTIVATIONS[activation](gate) * up * factor
