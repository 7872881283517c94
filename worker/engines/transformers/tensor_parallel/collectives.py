"""Sums and gathers over all ranks, opaque to torch.compile and recorded in CUDA graphs."""

import torch
import torch.distributed

_ALIGNMENT = 16  # bytes


def all_gather(gathered: torch.Tensor, values: torch.Tensor) -> None:
    """All ranks' contiguous `values` into `gathered` [ranks, *values.shape]."""
    # torch 2.13 gave it another name
    names = ("all_gather_single", "all_gather_into_tensor")
    name = next(name for name in names if hasattr(torch.distributed, name))
    getattr(torch.distributed, name)(gathered.view(-1), values.view(-1))


# What it writes to, flags and counts, means nothing outside, so it does not count as changed.
@torch.library.custom_op("canopy::sum_over_ranks", mutates_args=())
def sum_over_ranks(
    values: torch.Tensor, addresses: torch.Tensor, counts: torch.Tensor, capacity: int
) -> torch.Tensor:
    """The sum of all ranks' `values`: short messages by `triton_sum` where there is peer memory,
    all others by the group's collective. The other arguments: see PeerMemory.
    """
    # Compiled code may hand over another layout, and all ranks must send the same.
    values = values.contiguous()
    if 0 < values.numel() <= capacity and values.data_ptr() % _ALIGNMENT == 0:
        from worker.engines.transformers.tensor_parallel import triton_sum  # there on GPUs alone

        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        with torch.cuda.device(values.device):  # Triton launches on the current device
            return triton_sum.sum_values(values, addresses, counts, capacity, rank, ranks)
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total


@sum_over_ranks.register_fake
def _(
    values: torch.Tensor, addresses: torch.Tensor, counts: torch.Tensor, capacity: int
) -> torch.Tensor:
    return torch.empty(values.shape, dtype=values.dtype, device=values.device)


@torch.library.custom_op("canopy::gather_over_ranks", mutates_args=())
def gather_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The last dimension of all ranks' `values`, one after the other. All have the same shape."""
    ranks = torch.distributed.get_world_size()
    gathered = values.new_empty((ranks, *values.shape))
    all_gather(gathered, values.contiguous())
    return gathered.movedim(0, -2).flatten(-2)


@gather_over_ranks.register_fake
def _(values: torch.Tensor) -> torch.Tensor:
    ranks = torch.distributed.get_world_size()
    return values.new_empty((*values.shape[:-1], ranks * values.shape[-1]))
