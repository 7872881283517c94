"""Which products a kernel computes, by a timer that knows the times beforehand."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn
from triton.runtime.errors import PTXASError

from worker.engines.transformers.model import (
    compilation,
    float8_linear,
    linear_op,
    linear_tuning,
)
from worker.engines.transformers.model.cuda_graphs import MAX_CHUNKS
from worker.engines.transformers.model.fused_mlp import FusedMLP
from worker.engines.transformers.model.linear_tiles import (
    ROW_BUCKETS,
    LinearKey,
    Tile,
    bucket_of,
    candidates,
    default_tile,
)
from worker.engines.transformers.model.linear_tuning import (
    StreamedLinear,
    agree,
    fastest,
    tune_linears,
)

FAST, SLOW = Tile(64, 128, 1, 4, 4, "swapped"), Tile(16, 256, 1, 2, 5)
PLAIN_MS = 10.0


@pytest.fixture(autouse=True)
def _no_tiles() -> Iterator[None]:
    yield
    linear_op.clear_tiles()


class Timer:
    """Every tile takes `tile_ms`, for keys that `gains` says; else it is as slow as torch."""

    def __init__(self, tile_ms: float, gains: Callable[[LinearKey, int], bool]) -> None:
        self._tile_ms, self._gains = tile_ms, gains
        self.measured: list[tuple[LinearKey, int]] = []

    def __call__(
        self, key: LinearKey, layers: list[nn.Linear], rows: int, tile: Tile | None
    ) -> float | None:
        self.measured.append((key, rows))
        return self._tile_ms if tile is not None and self._gains(key, rows) else PLAIN_MS


def linear_layer(outputs: int, inputs: int, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False, dtype=dtype)


def test_the_fastest_tile_is_taken_if_it_gains() -> None:
    assert fastest(10.0, {SLOW: 9.5, FAST: 8.0}) == (FAST, 1.25)
    assert fastest(10.0, {SLOW: 9.5, FAST: None}) == (SLOW, 10 / 9.5)
    assert fastest(10.0, {FAST: 9.95}) == (None, 1.0)  # that is noise
    assert fastest(10.0, {FAST: None}) == (None, 1.0)


def test_answers_agree_up_to_rounding() -> None:
    expected = torch.randn(4, 64, dtype=torch.bfloat16)
    assert agree(expected.float() * 1.004, expected)
    wrong = expected.clone()
    wrong[2, 5] += 1.0
    assert not agree(wrong, expected)
    wrong[2, 5] = float("nan")
    assert not agree(wrong, expected)


def test_layers_that_gain_are_replaced_and_the_others_stay() -> None:
    model = nn.ModuleDict({"gains": linear_layer(64, 32), "loses": linear_layer(48, 32)})
    weight = model["gains"].weight
    timer = Timer(8.0, lambda key, rows: key.shape[0] == 64 and rows <= 8)
    assert tune_linears(model, 256, timer=timer) == 1
    assert isinstance(model["gains"], StreamedLinear) and model["gains"].weight is weight
    assert type(model["loses"]) is nn.Linear
    assert {(key.shape[0], rows) for key, rows in linear_op._tiles} == {(64, 1), (64, 8)}
    x = torch.randn(2, 3, 32, dtype=torch.bfloat16)
    assert torch.equal(model["gains"](x), x @ weight.T)


def test_layers_of_one_kind_are_measured_once() -> None:
    model = nn.ModuleList([linear_layer(64, 32) for _ in range(5)])
    timer = Timer(8.0, lambda key, rows: True)
    assert tune_linears(model, 8, timer=timer) == 5
    assert len(timer.measured) == 2 + len(candidates(timer.measured[0][0], 1))


@pytest.mark.parametrize(
    ("slots", "buckets"), [(1, []), (8, [1]), (40, [1, 8, 16, 32]), (65, [*ROW_BUCKETS])]
)
def test_steps_of_all_slots_are_not_measured(slots: int, buckets: list[int]) -> None:
    """A seed gives the same text after another start, so a measurement must not decide there."""
    timer = Timer(8.0, lambda key, rows: True)
    tune_linears(nn.ModuleList([linear_layer(64, 32)]), slots, timer=timer)
    assert sorted({rows for _, rows in timer.measured}) == buckets


def test_what_the_kernel_does_not_take_is_not_measured() -> None:
    timer = Timer(8.0, lambda key, rows: True)
    model = nn.ModuleList([linear_layer(64, 32, torch.float32), linear_layer(64, 24)])
    assert tune_linears(model, 256, timer=timer) == 0
    assert not timer.measured


def test_measuring_ends_in_time() -> None:
    """Each look at the clock finds ten seconds gone; what was chosen until then stays."""
    seconds = iter(range(0, 1000, 10))
    timer = Timer(8.0, lambda key, rows: True)
    model = nn.ModuleList([linear_layer(64, 32), linear_layer(48, 32)])
    with capture_logs() as logs:
        assert tune_linears(model, 256, timer=timer, clock=lambda: float(next(seconds))) == 1
    assert {rows for _, rows in timer.measured} == {1, 8}
    assert any(entry["log_level"] == "warning" for entry in logs)
    assert type(model[1]) is nn.Linear


def test_a_fused_mlp_takes_tiles_for_gated_products() -> None:
    mlp = FusedMLP(linear_layer(64, 32), linear_layer(32, 32), "silu")
    timer = Timer(8.0, lambda key, rows: key.activation == "silu")
    assert tune_linears(nn.ModuleList([mlp]), 64, timer=timer) == 1
    assert type(mlp.joined) is nn.Linear  # the module calls the operator itself
    assert {key.columns for key, _ in linear_op._tiles} == {32}


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal instruction was encountered"),
        PTXASError("PTXAS error: Internal Triton PTX codegen error"),
    ],
)
def test_a_failure_leaves_the_products_to_torch(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: Any, slots: int) -> int:
        linear_op.choose_tile(LinearKey(torch.Size((64, 32)), torch.bfloat16, ""), 1, FAST)
        float8_linear.choose_tile(torch.Size((64, 32)), 16, FAST)
        raise error

    monkeypatch.setattr(linear_tuning, "tune_linears", fail)
    with capture_logs() as logs:
        compilation._choose_products(nn.ModuleList([linear_layer(64, 32)]), 8)
    assert [entry["event"] for entry in logs] == ["linear layers are not tuned"]
    assert not linear_op._tiles and not float8_linear._tiles


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 8), (9, 16), (64, 64), (65, None)])
def test_buckets(rows: int, bucket: int | None) -> None:
    assert bucket_of(rows) == bucket


@pytest.mark.parametrize("activation", ["", "silu"])
@pytest.mark.parametrize("outputs", [1024, 128_256])
def test_there_are_candidates_for_all_products(outputs: int, activation: str) -> None:
    key = LinearKey(torch.Size((outputs, 64)), torch.bfloat16, activation)
    for bucket in ROW_BUCKETS:
        tiles = candidates(key, bucket)
        assert tiles
        assert all(tile.method != "sum" for tile in tiles) or bucket == 1
        assert all(tile.split == 1 for tile in tiles) or not activation


class WithHead(nn.Module):
    """`divided`: among several processes, its layer is within another."""

    def __init__(self, *, divided: bool) -> None:
        super().__init__()
        self.alike, self.other = linear_layer(48, 32), linear_layer(64, 32)
        head = linear_layer(48, 32)
        self.head = nn.Sequential(head) if divided else head

    def get_output_embeddings(self) -> nn.Module:
        return self.head


@pytest.mark.parametrize("divided", [False, True])
def test_the_logits_of_a_prefill_are_not_measured(divided: bool) -> None:
    """A prefill of a request that names a seed has as many, however small the vocabulary is, and a
    layer of the same shape takes the same tiles.
    """
    timer = Timer(8.0, lambda key, rows: True)
    tune_linears(WithHead(divided=divided), 256, timer=timer)
    for columns, unmeasured in ((64, set[int]()), (48, {MAX_CHUNKS})):
        rows = {rows for key, rows in timer.measured if key.columns == columns}
        assert rows == {*ROW_BUCKETS} - unmeasured


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("x_bytes", [1, 2])
def test_a_product_that_was_not_measured_has_a_tile(gated: bool, x_bytes: int) -> None:
    for rows in (1, 16, 64):
        tile = default_tile(rows, 4096, gated=gated, x_bytes=x_bytes, weight_bytes=1)
        assert tile.split == 1 or not gated
        assert tile.method != "swapped" or x_bytes == 1
