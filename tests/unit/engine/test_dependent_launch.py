"""Kernels that begin before the one before them has ended: where, and who asks for it."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from worker.engines.transformers.model import dependent_launch

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def uncached() -> Iterator[None]:
    cached = (dependent_launch.is_supported, dependent_launch.launch_options)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.parametrize(
    ("asked", "device", "capability", "early"),
    [
        ("1", CUDA, (9, 0), True),
        ("1", CUDA, (10, 0), True),
        ("", CUDA, (9, 0), False),
        ("1", CUDA, (8, 9), False),
        ("1", CPU, (9, 0), False),
    ],
)
def test_hopper_alone_and_only_where_it_is_asked_for(
    asked: str,
    device: torch.device,
    capability: tuple[int, int],
    early: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CANOPY_DEPENDENT_LAUNCH", asked)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    compiler = SimpleNamespace(enable_pdl=False)
    monkeypatch.setattr(dependent_launch, "compiler_settings", lambda: compiler)
    options = dependent_launch.launch_options(device)
    assert options == ({"PDL": True, "launch_pdl": True} if early else {"PDL": False})
    assert dependent_launch.use_for_compiled(device) is early
    assert compiler.enable_pdl is early


def test_a_compiler_that_knows_nothing_of_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_DEPENDENT_LAUNCH", "1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(dependent_launch, "compiler_settings", SimpleNamespace)
    assert not dependent_launch.use_for_compiled(CUDA)


def test_torch_has_the_setting() -> None:
    assert dependent_launch.compiler_settings().enable_pdl is False
