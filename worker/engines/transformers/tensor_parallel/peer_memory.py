"""Memory of each GPU that the other GPUs of the group write to, for sums of a few kilobytes to some
megabytes: two a layer, most of whose time would be latency.

A rank's memory has a flag per program and sender, then two halves with a part per sender. It is
shared by CUDA IPC, as torch.multiprocessing does it, rather than by torch's symmetric memory, whose
rendezvous a process can do only once: an engine that is started again has new followers.
"""

from typing import Any, NamedTuple

import msgspec
import structlog
import torch
import torch.distributed

from worker.engines.transformers.tensor_parallel.collectives import all_gather
from worker.errors import one_line

log = structlog.get_logger(__name__)

PROGRAMS = 128  # of the kernel at most: each owns its flags, its count, its part of every message
CHUNK = 2048  # elements that a program adds at once
_BYTES_PER_PEER = 4 << 20  # of a message at most, over two ranks; longer ones are faster by NCCL
_FLAG_BYTES = 8
_HANDLE_BYTES = 1024  # more than an encoded handle has
_RELEASED = 1 << 62  # a flag that no count reaches


class _Handle(msgspec.Struct, array_like=True):
    """What `UntypedStorage._share_cuda_` gives."""

    device: int  # of the sender
    memory: bytes
    size: int  # bytes
    offset: int  # bytes
    counter: bytes
    counter_offset: int
    event: bytes
    event_needed: bool


class PeerMemory(NamedTuple):
    """`addresses` [2, ranks] int64: of each rank's flags and of its halves, as seen from here.
    `counts` [PROGRAMS] int64: sums so far. `capacity`: elements of a message in
    `dtype`, the only one that it takes. Empty: there is none.
    """

    addresses: torch.Tensor
    counts: torch.Tensor
    capacity: int
    dtype: torch.dtype
    own: torch.Tensor  # int64, the flags
    mapped: tuple[Any, ...] = ()  # what has to live as long as the addresses are used

    def release(self) -> None:
        """The kernels that wait for a lost rank go on, and whatever is added from now on is wrong.
        For the process to be able to use its GPU again.
        """
        if self.capacity:
            with torch.cuda.stream(torch.cuda.Stream(self.own.device)):
                self.own.fill_(_RELEASED)


def no_peer_memory(device: torch.device) -> PeerMemory:
    """All sums go through the group's collectives."""
    nothing = torch.empty(0, dtype=torch.long, device=device)
    return PeerMemory(nothing, nothing, 0, torch.float32, nothing)


def share_memory(device: torch.device, dtype: torch.dtype) -> PeerMemory:
    """Made by all ranks together; on all or on none, as far as their GPUs reach each other's
    memory. Raises what a failed collective raises.
    """
    if device.type != "cuda":
        return no_peer_memory(device)
    if not _all_agree(_reaches_peers(device), device):
        log.info("sums go through NCCL", reason="the GPUs do not reach each other's memory")
        return no_peer_memory(device)
    ranks = torch.distributed.get_world_size()
    capacity = _BYTES_PER_PEER // dtype.itemsize // (ranks - 1) // CHUNK * CHUNK
    flags_size = PROGRAMS * ranks * _FLAG_BYTES
    size = flags_size + 2 * ranks * capacity * dtype.itemsize
    memory = torch.zeros(size, dtype=torch.uint8, device=device)
    own = memory[:flags_size].view(torch.long)
    own.fill_(0)  # loads the kernel that `release` needs while others wait
    torch.cuda.synchronize(device)
    mapped, reason = _map_peers(memory)
    if not _all_agree(not reason, device):
        log.info("sums go through NCCL", reason=reason or "another rank could not share memory")
        return no_peer_memory(device)
    bases = [tensor.data_ptr() for tensor in mapped]
    addresses = torch.tensor([bases, [base + flags_size for base in bases]], device=device)
    counts = torch.zeros(PROGRAMS, dtype=torch.long, device=device)
    return PeerMemory(addresses, counts, capacity, dtype, own, tuple(mapped))


def _map_peers(memory: torch.Tensor) -> tuple[list[torch.Tensor], str]:
    """The memory of all ranks, by rank; or why not."""
    encoded, reason = b"", ""
    try:
        encoded = msgspec.msgpack.encode(memory.untyped_storage()._share_cuda_())
    except RuntimeError as error:  # another allocator, or a container that forbids it
        reason = one_line(error)
    received = _exchange(encoded, memory.device)
    mapped: list[torch.Tensor] = []
    try:
        for rank, handle in enumerate(received):
            own = rank == torch.distributed.get_rank()
            mapped.append(memory if own else _open(handle, memory.device))
    except (RuntimeError, msgspec.DecodeError) as error:
        reason = reason or one_line(error)
    return mapped, reason


def _open(encoded: bytes, device: torch.device) -> torch.Tensor:
    """The memory of another GPU as a tensor of this one. Raises RuntimeError."""
    handle = msgspec.msgpack.decode(encoded, type=_Handle)
    storage = torch.UntypedStorage._new_shared_cuda(
        device.index,
        handle.memory,
        handle.size,
        handle.offset,
        handle.counter,
        handle.counter_offset,
        handle.event,
        handle.event_needed,
    )
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)


def _exchange(encoded: bytes, device: torch.device) -> list[bytes]:
    """What each rank encoded."""
    ranks = torch.distributed.get_world_size()
    own = torch.zeros(_HANDLE_BYTES, dtype=torch.uint8)
    own[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
    gathered = torch.empty(ranks, _HANDLE_BYTES, dtype=torch.uint8, device=device)
    lengths = torch.empty(ranks, 1, dtype=torch.long, device=device)
    all_gather(gathered, own.to(device))
    all_gather(lengths, torch.tensor([len(encoded)], device=device))
    received = []
    for row, length in zip(gathered.tolist(), lengths[:, 0].tolist(), strict=True):
        received.append(bytes(row[:length]))
    return received


def _reaches_peers(device: torch.device) -> bool:
    """Whether this GPU may use the memory of the others of the group, which follow each other."""
    first = device.index - torch.distributed.get_rank()
    peers = range(first, first + torch.distributed.get_world_size())
    return all(
        torch.cuda.can_device_access_peer(device, peer) for peer in peers if peer != device.index
    )


def _all_agree(yes: bool, device: torch.device) -> bool:
    votes = torch.tensor([int(yes)], device=device)
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MIN)
    return bool(votes.item())
