"""FlashAttention instead of Triton's kernel: when it is taken, and what it is given."""

import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from worker import models
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
    monkeypatch.setattr(flash_attention, "_installed", lambda _: print)
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


def test_a_package_that_cannot_be_imported_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.device) -> None:
        raise OSError("libcute_dsl_runtime.so: cannot open shared object file")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(flash_attention, "_installed", fail)
    layout: Any = Layout()
    with capture_logs() as lines:
        flash_attention.choose(layout)
    assert [line["event"] for line in lines] == ["FlashAttention is not used"]
    assert not flash_attention.chosen()


def test_kernels_are_kept_by_package_and_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of the package's own keys do not tell one GPU from another."""
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "4.0.0b36")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
    monkeypatch.setattr(models, "home", lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", None)  # ImportError
    for name in ("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    assert flash_attention._installed(torch.device("cuda")) is None
    folder = tmp_path / "cache" / "flash_attention" / "4.0.0b36-100"
    assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] == str(folder)
    assert folder.stat().st_mode & 0o77 == 0


def test_native_code_is_taken_from_a_private_folder_alone(tmp_path: Path) -> None:
    before = os.umask(0o002)  # as where every user has a group
    try:
        assert flash_attention.private_folder(tmp_path / "cache" / "kernels", "a") is not None
    finally:
        os.umask(before)
    assert flash_attention.private_folder(tmp_path / "kernels", "a") == tmp_path / "kernels" / "a"
    for open_to_others in (tmp_path / "kernels" / "a", tmp_path / "kernels"):
        open_to_others.chmod(0o777)
        with capture_logs() as lines:
            assert flash_attention.private_folder(tmp_path / "kernels", "a") is None
        assert lines[0]["reason"] == f"{open_to_others} is not private"
        open_to_others.chmod(0o700)
    (tmp_path / "file").touch()
    with capture_logs() as lines:
        assert flash_attention.private_folder(tmp_path / "file", "a") is None
    assert [line["event"] for line in lines] == ["FlashAttention's kernels are not kept"]


def test_kernels_of_former_packages_go(tmp_path: Path) -> None:
    for age, name in enumerate(["f", "e", "d", "c", "b", "a"]):
        folder = flash_attention.private_folder(tmp_path, name)
        assert folder is not None
        (folder / "kernel.o").touch()
        for each in tmp_path.iterdir():
            os.utime(each, (each.stat().st_mtime - 60, each.stat().st_mtime - 60))
        assert age < 4 or len(list(tmp_path.iterdir())) == 4
    assert {each.name for each in tmp_path.iterdir()} == {"a", "b", "c", "d"}
    flash_attention.private_folder(tmp_path, "d")  # used again
    flash_attention.private_folder(tmp_path, "g")
    assert {each.name for each in tmp_path.iterdir()} == {"g", "d", "a", "b"}


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
