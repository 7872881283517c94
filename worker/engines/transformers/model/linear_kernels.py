"""The kernels of `triton_linear`, which says what their arguments are.

A product of few rows reads each weight once and computes little with it: it is as fast as memory
is. Enough loads must be under way at any time (tiles times pipeline stages times programs), and
programs must end together. Where a matrix has too few tiles of output for that, the inner dimension
is split, and the program that arrives last adds the parts in their order (split-K with a
semaphore, as in NVIDIA's CUTLASS, https://github.com/NVIDIA/cutlass).

Programmatic dependent launch (PDL): a kernel starts while the one before it ends. Weights do not
depend on that one, so their first part is brought into the L2 cache meanwhile. It waits before it
lets the next one start, so whoever starts knows that all kernels but the last have ended.
https://docs.nvidia.com/cuda/cuda-c-programming-guide/#programmatic-dependent-launch-and-synchronization
"""

import triton
import triton.language as tl


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """`x` [any] float32 through the activation of that name."""
    if ACTIVATION == "silu":
        result = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        result = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        result = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        result = tl.maximum(x, 0.0)  # relu
    return result


@triton.jit
def _multiplied(x, weight, accumulated, METHOD: tl.constexpr):  # type: ignore[no-untyped-def]
    """Adds the product of `x` [BLOCK_M, BLOCK_K] and `weight` [BLOCK_N, BLOCK_K]."""
    if weight.dtype != x.dtype and METHOD != "sum":
        weight = weight.to(x.dtype)
    if METHOD == "sum":  # x: [1, BLOCK_K]
        result = accumulated + x.to(tl.float32) * weight.to(tl.float32)
    elif METHOD == "swapped":  # out features take the place of rows: those are many
        result = tl.dot(weight, tl.trans(x), accumulated, input_precision="ieee")
    else:
        result = tl.dot(x, tl.trans(weight), accumulated, input_precision="ieee")
    return result


@triton.jit
def _prefetch(address):  # type: ignore[no-untyped-def]
    """Asks for cache lines at `address` [any] without waiting for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [address.to(tl.int64)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _weights(place, mask, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Weights at `place`. They are read once, so that they need not push others out of the L2."""
    if MASKED:
        loaded = tl.load(place, mask=mask, other=0.0, eviction_policy="evict_first")
    else:
        loaded = tl.load(place, eviction_policy="evict_first")
    return loaded


@triton.jit
def _accumulator(  # type: ignore[no-untyped-def]
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, METHOD: tl.constexpr
):
    if METHOD == "sum":
        zeros = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    elif METHOD == "swapped":
        zeros = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    else:
        zeros = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    return zeros


@triton.jit
def _places(m, n, inside, M, N, METHOD: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the accumulated values belong in [M, N], and which of them do."""
    if METHOD == "swapped":
        place = m[None, :].to(tl.int64) * N + n[:, None]
        written = (m < M)[None, :] & inside[:, None]
    else:
        place = m[:, None].to(tl.int64) * N + n[None, :]
        written = (m < M)[:, None] & inside[None, :]
    return place, written


@triton.jit
def _finished(  # type: ignore[no-untyped-def]
    accumulated, n, row_scale, weight_scale, bias, inside,
    METHOD: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Scales and biases, for `n` [BLOCK_N] of the out features. `row_scale`: [BLOCK_M]."""
    if SCALED:
        scale = tl.load(weight_scale + n, mask=inside, other=0.0).to(tl.float32)
        if METHOD == "swapped":
            accumulated = accumulated * scale[:, None] * row_scale[None, :]
        else:
            accumulated = accumulated * scale[None, :] * row_scale[:, None]
    if BIASED:
        added = tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
        if METHOD == "swapped":
            accumulated += added[:, None]
        else:
            accumulated += added[None, :]
    return accumulated


@triton.jit(do_not_specialize=["M"])
def linear_kernel(  # type: ignore[no-untyped-def]
    x, weight, x_scale, weight_scale, bias, out, parts, arrived,
    M, N, K, x_row, weight_row,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr,
    METHOD: tl.constexpr, STAGES: tl.constexpr, ACTIVATION: tl.constexpr, SCALED: tl.constexpr,
    ROW_SCALED: tl.constexpr, BIASED: tl.constexpr, EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    PDL: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    # GATED: `weight` has 2 * N rows, of gates and of what they are multiplied with.
    GATED: tl.constexpr = ACTIVATION != ""
    MASKED: tl.constexpr = not (EVEN_N and EVEN_K)
    tile, split = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, BLOCK_N)
    m, inner = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    n = tile * BLOCK_N + columns
    inside = n < N
    # In elements, a large vocabulary is beyond 2**31.
    gate = weight + tile.to(tl.int64) * BLOCK_N * weight_row
    up = gate + N.to(tl.int64) * weight_row
    rows = tl.where(inside, columns, 0)[:, None] * weight_row
    span = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K) * BLOCK_K
    begin = split * span
    end = tl.minimum(K, begin + span)
    if PDL:
        line = tl.minimum(begin + 64 * tl.arange(0, PREFETCH), K - 1)
        _prefetch(gate + rows + line[None, :])
        if GATED:
            _prefetch(up + rows + line[None, :])
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    accumulated = _accumulator(BLOCK_M, BLOCK_N, BLOCK_K, METHOD)
    other = accumulated
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        k = start + inner
        x_mask, mask = (m < M)[:, None], inside[:, None]
        if not EVEN_K:
            x_mask = x_mask & (k < end)[None, :]
            mask = mask & (k < end)[None, :]
        x_tile = tl.load(x + m[:, None] * x_row + k[None, :], mask=x_mask, other=0.0)
        place = rows + k[None, :]
        weights = _weights(gate + place, mask, MASKED)
        accumulated = _multiplied(x_tile, weights, accumulated, METHOD)
        if GATED:
            weights = _weights(up + place, mask, MASKED)
            other = _multiplied(x_tile, weights, other, METHOD)

    if METHOD == "sum":
        accumulated, other = tl.sum(accumulated, 1)[None, :], tl.sum(other, 1)[None, :]
    place, written = _places(m, n, inside, M, N, METHOD)
    last = True
    if SPLIT_K > 1:
        size = M.to(tl.int64) * N
        tl.store(parts + split * size + place, accumulated, mask=written)
        tl.debug_barrier()  # the whole program's stores come before its arrival
        last = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == SPLIT_K - 1
        if last:
            accumulated = tl.zeros_like(accumulated)
            for part in range(SPLIT_K):  # in this order, whoever is last
                accumulated += tl.load(
                    parts + part * size + place, mask=written, other=0.0, cache_modifier=".cg"
                )
            tl.store(arrived + tile, 0)  # for the next product
    if last:
        row_scale = tl.full([BLOCK_M], 1.0, tl.float32)
        if ROW_SCALED:
            row_scale = tl.load(x_scale + m, mask=m < M, other=0.0)
        result = _finished(
            accumulated, n, row_scale, weight_scale, bias, inside, METHOD, SCALED, BIASED
        )
        if GATED:
            result = _activated(result, ACTIVATION) * _finished(
                other, n + N, row_scale, weight_scale, bias, inside, METHOD, SCALED, BIASED
            )
        tl.store(out + place, result.to(out.dtype.element_ty), mask=written)


@triton.jit
def gate_kernel(  # type: ignore[no-untyped-def]
    gate, up, out, size, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """activation(gate) * up, each of `size` values."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gates = tl.load(gate + at, mask=at < size, other=0.0).to(tl.float32)
    ups = tl.load(up + at, mask=at < size, other=0.0).to(tl.float32)
    result = _activated(gates, ACTIVATION) * ups
    tl.store(out + at, result.to(out.dtype.element_ty), mask=at < size)
