"""What a node tells of its device's memory."""

import os
import sys
from types import SimpleNamespace

import pytest

from worker.device_memory import UNKNOWN, DeviceMemory


def test_on_a_cpu_it_is_the_process_and_the_machine() -> None:
    taken, total, free = DeviceMemory().of("cpu")
    assert 1_000_000 < taken < total
    assert 1_000_000 < free < total
    assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_on_gpus_it_is_what_pytorch_has_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        memory_reserved=lambda index: 10 * (index + 1),
        get_device_properties=lambda index: SimpleNamespace(total_memory=100),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert DeviceMemory().of("cuda:0,cuda:1") == (30, 200, 0)


@pytest.mark.parametrize("device", ["none", "", "127.0.0.1:8080"])
def test_elsewhere_it_is_not_known(device: str) -> None:
    assert DeviceMemory().of(device) == UNKNOWN
