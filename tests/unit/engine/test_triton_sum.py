"""The sum over ranks without a GPU, by Triton's interpreter: the ranks are computed one after the
other here, so each finds the flags of the others set, and those before it had no answer yet.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.unit.engine.interpreted import interpreted

_ROOM = "worker.engines.transformers.tensor_parallel"
_CAPACITY = 3 * 2048
_PROGRAMS = 2


@pytest.fixture(scope="module")
def kernels() -> Iterator[Any]:
    with interpreted("triton_sum", "triton_sum", room=_ROOM) as module:
        yield module


class Group:
    """Ranks that share this process's memory."""

    def __init__(self, kernels: Any, ranks: int, dtype: torch.dtype) -> None:
        self._kernels = kernels
        self.ranks = ranks
        self.flags = torch.zeros(ranks, _PROGRAMS, ranks, dtype=torch.long)
        self.halves = torch.zeros(ranks, 2, ranks, _CAPACITY, dtype=dtype)
        self.counts = torch.zeros(ranks, _PROGRAMS, dtype=torch.long)
        flags = [part.data_ptr() for part in self.flags]
        self.addresses = torch.tensor([flags, [part.data_ptr() for part in self.halves]])

    def add(self, rank: int, values: torch.Tensor) -> torch.Tensor:
        counts = self.counts[rank]
        return self._kernels.sum_values(
            values, self.addresses, counts, _CAPACITY, rank, self.ranks, programs=_PROGRAMS
        )

    def add_last(self, last: int, values: list[torch.Tensor]) -> torch.Tensor:
        """What `last` gets, after the others, who do not wait."""
        for rank in range(self.ranks):
            if rank != last:
                self.flags[rank] = 1 << 62
                self.add(rank, values[rank])
        return self.add(last, values[last])


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_rank_adds_up_what_all_have(kernels: Any, ranks: int, dtype: torch.dtype) -> None:
    group = Group(kernels, ranks, dtype)
    for turn, size in enumerate((24, 2048, 5000, 8, _CAPACITY)):
        last = turn % ranks
        values = [torch.randn(size).to(dtype) for _ in range(ranks)]
        total = group.add_last(last, values)
        expected = sum((part.float() for part in values), torch.zeros(size)).to(dtype)
        torch.testing.assert_close(total, expected)
        group.flags[last] = 0  # it has to wait for the others at its next turn


def test_every_program_counts_its_own_sums_and_takes_its_halves_in_turn(kernels: Any) -> None:
    group = Group(kernels, 2, torch.float32)
    group.add_last(1, [torch.full((8,), 1.0)] * 2)
    group.add_last(1, [torch.full((4096,), 2.0)] * 2)
    assert group.counts.tolist() == [[2, 1], [2, 1]]
    assert group.flags[1, :, 0].tolist() == [2, 1]
    received = group.halves[1, :, 0]
    assert received[:, 0].tolist() == [1.0, 2.0]  # the first program's second sum left the first
    assert received[:, 2048].tolist() == [2.0, 0.0]


def test_a_rank_that_never_comes_makes_no_number(
    kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_MAX_LOOKS", 3)
    group = Group(kernels, 2, torch.float32)
    assert group.add(0, torch.ones(8)).isnan().all()
