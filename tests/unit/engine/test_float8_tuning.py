"""Which tile a float8 layer takes for so many rows. The times are made up: there is no GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from triton.runtime.errors import OutOfResources

from worker.engines.transformers.model import float8_tuning, linear_op
from worker.engines.transformers.model.float8_linear import Float8Linear, from_linear
from worker.engines.transformers.model.linear_tiles import ROW_BUCKETS, Tile


@pytest.fixture(autouse=True)
def _no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_op, "_tiles", {})


def model() -> nn.Module:
    shapes = ((32, 48), (32, 48), (32, 64))
    return nn.Sequential(*(from_linear(nn.Linear(*shape).bfloat16()) for shape in shapes))


def tile(layer: Float8Linear, rows: int) -> Tile | None:
    return linear_op.chosen_tile(torch.empty(rows, 32), layer.weight)


def times(monkeypatch: pytest.MonkeyPatch, milliseconds: Iterator[float]) -> list[Any]:
    """Of one product after the other; infinite: the tile is too large for the GPU."""
    measured: list[Any] = []

    def measure(product: Any, x: torch.Tensor, layers: list[Float8Linear]) -> float:
        chosen = linear_op.chosen_tile(x, layers[0].weight)
        measured.append((tuple(layers[0].weight.shape), len(x), chosen, len(layers)))
        time = next(milliseconds)
        if time == float("inf"):
            raise OutOfResources(200_000, 100_000, "shared memory")
        return time

    monkeypatch.setattr(float8_tuning, "time_product", measure)
    return measured


def test_the_fastest_tile_of_each_size_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = times(monkeypatch, iter([3.0, 1.0, 2.0] * 8))
    network: Any = model()
    assert float8_tuning.tune(network, 64) == 3
    assert len(measured) == 2 * 3 * len(ROW_BUCKETS)  # layers of one size once
    assert measured[0][3] == 2
    for layer in network:
        for bucket in ROW_BUCKETS:
            assert tile(layer, bucket) == float8_tuning._CANDIDATES[bucket][1]
    assert tile(network[0], 65) is None


def test_more_rows_than_slots_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = times(monkeypatch, iter([1.0] * 12))
    float8_tuning.tune(model(), 8)
    assert {rows for _, rows, _, _ in measured} == {1, 16}


def test_a_tile_too_large_for_the_gpu_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, iter([float("inf"), float("inf"), 5.0, *[float("inf")] * 3]))
    network: Any = nn.Sequential(from_linear(nn.Linear(32, 48).bfloat16()))
    float8_tuning.tune(network, 2)
    assert tile(network[0], 1) == float8_tuning._CANDIDATES[1][2]
    assert tile(network[0], 2) is None
