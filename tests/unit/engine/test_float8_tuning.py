"""Which tile a float8 layer takes for so many rows. The times are made up: there is no GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from triton.runtime.errors import OutOfResources

from worker.engines.transformers.model import float8_linear, float8_tuning
from worker.engines.transformers.model.float8_linear import (
    ROW_BUCKETS,
    Float8Linear,
    chosen_tile,
    from_linear,
)
from worker.engines.transformers.model.linear_tiles import Tile


@pytest.fixture(autouse=True)
def _no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8_linear, "_tiles", {})


def model() -> nn.Module:
    shapes = ((32, 48), (32, 48), (32, 64))
    return nn.Sequential(*(from_linear(nn.Linear(*shape).bfloat16()) for shape in shapes))


def tile(layer: Float8Linear, rows: int) -> Tile | None:
    return chosen_tile(layer.weight.shape, rows)


def times(monkeypatch: pytest.MonkeyPatch, milliseconds: Iterator[float]) -> list[Any]:
    """Of one product after the other; infinite: the tile is too large for the GPU."""
    measured: list[Any] = []

    def measure(product: Any, x: torch.Tensor, layers: list[Float8Linear]) -> float:
        measured.append((len(x), chosen_tile(layers[0].weight.shape, len(x)), len(layers)))
        time = next(milliseconds)
        if time == float("inf"):
            raise OutOfResources(200_000, 100_000, "shared memory")
        return time

    monkeypatch.setattr(float8_tuning, "time_product", measure)
    return measured


def test_the_fastest_of_each_size_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = times(monkeypatch, iter([3.0, 2.0, 1.0, *[4.0] * 100]))
    network: Any = nn.Sequential(from_linear(nn.Linear(32, 48).bfloat16()))
    assert float8_tuning.tune(network, 256) == 1
    assert [rows for rows, tile, _ in measured if tile is None] == list(ROW_BUCKETS[1:])
    assert tile(network[0], 1) == float8_tuning._CANDIDATES[1][1]
    assert tile(network[0], 2) is None  # torch's was the first, and the fastest
    measured = times(monkeypatch, iter([1.0, 1.0, *[9.0, 9.0, 1.0, 9.0] * 2]))
    float8_tuning.tune(network, 32)
    assert tile(network[0], 9) == float8_tuning._CANDIDATES[16][1]
    assert tile(network[0], 32) == float8_tuning._CANDIDATES[32][1]
    assert tile(network[0], 257) is None


def test_layers_of_one_size_are_measured_together(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = times(monkeypatch, iter([1.0] * 12))
    assert float8_tuning.tune(model(), 8) == 3
    assert {(rows, layers) for rows, _, layers in measured} == {(1, 2), (1, 1), (16, 2), (16, 1)}


def test_a_tile_too_large_for_the_gpu_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, iter([float("inf"), 5.0, 3.0, *[float("inf")] * 3]))
    network: Any = nn.Sequential(from_linear(nn.Linear(32, 48).bfloat16()))
    float8_tuning.tune(network, 2)
    assert tile(network[0], 1) == float8_tuning._CANDIDATES[1][1]
    assert tile(network[0], 2) is None


def test_a_tile_that_fails_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> float:
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(float8_tuning, "time_product", fail)
    network: Any = nn.Sequential(from_linear(nn.Linear(32, 48).bfloat16()))
    with pytest.raises(RuntimeError):
        float8_tuning.tune(network, 2)
    assert tile(network[0], 1) is None
