"""The kernel of `collectives`: a sum over all ranks in one launch, without the host.

Each rank writes its message to all others, says so, waits until they have said so, and adds up what
it has received. Two halves in turn make one such meeting enough: who writes to a half again has met
the others once since, so they have read it. Chunks belong to the same program whatever the length
of a message, so a program's count tells which half is next.
"""

import torch
import triton
import triton.language as tl

from worker.engines.transformers.tensor_parallel.peer_memory import CHUNK, PROGRAMS

_WARPS = 8
# A look at a flag takes a microsecond, so these are minutes. Then the sum is NaN, which no sampler
# takes for a token.
_MAX_LOOKS = 1 << 28


@triton.jit
def sum_kernel(  # type: ignore[no-untyped-def]
    values,
    out,
    addresses,
    counts,
    size,
    capacity,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    CHUNK: tl.constexpr,
    MAX_LOOKS: tl.constexpr,
):
    """`values` and `out` [size]; see PeerMemory."""
    program = tl.program_id(0)
    count = tl.load(counts + program)
    part = (count % 2) * RANKS * capacity
    for peer in tl.static_range(RANKS):
        if peer != RANK:
            base = tl.multiple_of(tl.load(addresses + RANKS + peer).to(values.dtype), 16)
            for start in range(program * CHUNK, size, PROGRAMS * CHUNK):
                at = start + tl.arange(0, CHUNK)
                message = tl.load(values + at, mask=at < size)
                tl.store(base + part + RANK * capacity + at, message, mask=at < size)
    tl.debug_barrier()
    for peer in tl.static_range(RANKS):
        if peer != RANK:
            flags = tl.load(addresses + peer).to(counts.dtype)
            tl.atomic_xchg(flags + program * RANKS + RANK, count + 1, sem="release", scope="sys")
    looks = 0
    for peer in tl.static_range(RANKS):
        if peer != RANK:
            flag = tl.load(addresses + RANK).to(counts.dtype) + program * RANKS + peer
            seen = tl.atomic_add(flag, 0, sem="acquire", scope="sys")
            while (seen <= count) & (looks < MAX_LOOKS):
                seen = tl.atomic_add(flag, 0, sem="acquire", scope="sys")
                looks += 1
    tl.debug_barrier()
    own = tl.multiple_of(tl.load(addresses + RANKS + RANK).to(values.dtype), 16)
    for start in range(program * CHUNK, size, PROGRAMS * CHUNK):
        at = start + tl.arange(0, CHUNK)
        total = tl.zeros([CHUNK], tl.float32)
        for rank in tl.static_range(RANKS):  # in one order, so all ranks get the same bits
            if rank == RANK:
                message = tl.load(values + at, mask=at < size)
            else:
                message = tl.load(
                    own + part + rank * capacity + at, mask=at < size, cache_modifier=".cg"
                )
            total += message.to(tl.float32)
        total = tl.where(looks < MAX_LOOKS, total, float("nan"))
        tl.store(out + at, total.to(out.dtype.element_ty), mask=at < size)
    tl.store(counts + program, count + 1)


def sum_values(
    values: torch.Tensor,
    addresses: torch.Tensor,
    counts: torch.Tensor,
    capacity: int,
    rank: int,
    ranks: int,
    *,
    programs: int = PROGRAMS,
) -> torch.Tensor:
    """The sum of all ranks' contiguous `values`, at most `capacity` of them. The next three: see
    PeerMemory. `programs`: the same at every call.
    """
    out = torch.empty_like(values)
    size = values.numel()
    sum_kernel[(min(programs, triton.cdiv(size, CHUNK)),)](
        values,
        out,
        addresses,
        counts,
        size,
        capacity,
        RANK=rank,
        RANKS=ranks,
        PROGRAMS=programs,
        CHUNK=CHUNK,
        MAX_LOOKS=_MAX_LOOKS,
        num_warps=_WARPS,
    )
    return out
