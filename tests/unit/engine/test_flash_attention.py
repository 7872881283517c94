"""FlashAttention instead of Triton's kernel: when it is taken, and what it is given."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from worker.engines.transformers.model import attention, flash_attention
from worker.engines.transformers.model.attention import Bounds
from worker.engines.transformers.model.kv_cache import KVCacheShape
from worker.engines.transformers.model.step import Step
from worker.engines.transformers.model.window import Window

NUMBERS = torch.tensor([0, 3]).int()


class Layout:
    """A layer without a window behind one that has one."""

    def __init__(self) -> None:
        self.shapes = {"windowed": KVCacheShape(1, 64), "plain": KVCacheShape(2, 128)}
        self.windows = {"windowed": Window(16), "plain": Window()}
        self.devices = dict.fromkeys(self.shapes, torch.device("cuda"))
        self.dtype = torch.bfloat16

    def query_heads(self, module: str) -> int:
        return 4 * self.shapes[module].kv_heads


@pytest.fixture(autouse=True)
def unchosen() -> Iterator[None]:
    yield
    flash_attention.forget()


def choose(monkeypatch: pytest.MonkeyPatch, gain: float | Exception, **changes: Any) -> list[Any]:
    """What is logged. `gain`: as measured."""

    def measured(_forward: Any, *shape: Any) -> float:
        assert shape == (8, 2, 128, torch.device("cuda"))
        if isinstance(gain, Exception):
            raise gain
        return gain

    monkeypatch.setattr(flash_attention, "_gain", measured)
    monkeypatch.setattr(flash_attention, "_installed", lambda: print)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    layout: Any = Layout()
    for name, value in changes.items():
        setattr(layout, name, value)
    with capture_logs() as lines:
        flash_attention.choose(layout)
    return lines


def test_it_is_taken_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, 1.3)
    assert flash_attention.chosen()
    choose(monkeypatch, 1.01)
    assert not flash_attention.chosen()
    [line] = choose(monkeypatch, RuntimeError("no compiler"))
    assert line["reason"].endswith("no compiler")
    assert not flash_attention.chosen()


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": torch.float8_e4m3fn},
        {"dtype": torch.float32},
        {"devices": dict.fromkeys(("windowed", "plain"), torch.device("cpu"))},
        {"windows": dict.fromkeys(("windowed", "plain"), Window(16))},
    ],
)
def test_what_it_cannot_compute_is_not_measured(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not choose(monkeypatch, AssertionError(), **changes)
    assert not flash_attention.chosen()


@pytest.mark.parametrize(
    ("bounds", "flash"),
    [
        (Bounds(0.1), True),
        (Bounds(0.1, window=8), False),
        (Bounds(0.1, softcap=3.0), False),
        (Bounds(0.1, sinks=torch.zeros(4)), False),
    ],
)
def test_plain_layers_alone_are_given_to_it(
    bounds: Bounds, flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    given: dict[str, Any] = {}

    def forward(*_: Any, **more: Any) -> None:
        taken.append("flash")
        given.update(more)

    class Kernels:
        @staticmethod
        def prefill(*_: Any) -> None:
            taken.append("triton")

    monkeypatch.setattr(flash_attention, "_forward", forward)
    monkeypatch.setattr(attention, "_kernels", Kernels)
    query, cache = torch.zeros(3, 4, 16), torch.zeros(5, 16, 2, 16)
    tables = torch.arange(12).view(3, 4).int()
    step = Step(
        NUMBERS, NUMBERS[:0], NUMBERS[:0],
        chunk_slots=torch.tensor([2]), chunk_lengths=torch.tensor([3]), chunk_starts=NUMBERS,
    )  # fmt: skip
    attention._prefill(query, query, (cache, cache, tables), step, bounds)
    assert taken == ["flash" if flash else "triton"]
    if flash:
        assert given["page_table"].tolist() == [[8, 9, 10, 11]]
        assert given["causal"]
        assert given["softmax_scale"] == bounds.scale
        assert given["cu_seqlens_q"] is NUMBERS
