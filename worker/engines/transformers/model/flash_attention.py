"""FlashAttention for prompts, where the package `flash-attn-4` is installed and was measured to be
faster than `triton_attention.prefill`, on this GPU and at this start.

Its kernels for Hopper overlap two groups of warps, which Triton does not: Shah et al., 2024,
https://arxiv.org/abs/2407.08608. Layers with a window, a cap or sinks, float8 keys and decoding
stay with Triton.
"""

import importlib.metadata
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import torch

from worker import models
from worker.engines.transformers.model.cache_size import BLOCK_SIZE, blocks_for
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.errors import one_line

log = structlog.get_logger(__name__)

_PACKAGE = "flash-attn-4"
_KEPT_FOLDERS = 4  # of compiled kernels, the present one among them
_DTYPES = (torch.bfloat16, torch.float16)
_CAPABILITY = (9, 0)  # from Hopper on it reads a paged cache
_MIN_GAIN = 1.05  # times as fast, or it is not taken
_TOLERANCE = 2e-2  # of the largest output
_TRIAL_CHUNK, _TRIAL_LENGTH = 2048, 8186  # tokens; the last page is not full
_TRIALS = 5

# Of this process, as measured: what computes prompts instead of Triton's kernel.
_forward: Callable[..., Any] | None = None


def chosen() -> bool:
    """Whether it computes what it can."""
    return _forward is not None


def prefill(
    out: torch.Tensor,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    rows: torch.Tensor,
    lengths: torch.Tensor,
    chunk_starts: torch.Tensor,
    scale: float,
) -> None:
    """As `triton_attention.prefill`, but tokens of no chunk stay as they are in `out`."""
    if _forward is None:
        raise RuntimeError("FlashAttention was not chosen")
    _forward(
        query,
        key_cache,
        value_cache,
        cu_seqlens_q=chunk_starts,
        seqused_k=lengths,
        max_seqlen_q=len(query),
        page_table=block_tables.index_select(0, rows),
        softmax_scale=scale,
        causal=True,
        out=out,
    )


def choose(layout: KVCacheLayout) -> None:
    """Measures it against Triton's kernel, with the shape of the model's first plain layer."""
    forget()
    module = next((each for each in layout.shapes if not layout.windows[each].tokens), None)
    if module is None or not _may_take(layout.dtype, layout.devices[module]):
        return
    shape, heads = layout.shapes[module], layout.query_heads(module)
    try:
        forward = _installed(layout.devices[module])
        if forward is None:
            return
        gain = _gain(forward, heads, shape.kv_heads, shape.head_size, layout.devices[module])
    except Exception as error:  # it and its compiler fail in many ways; Triton's kernel stays
        log.warning("FlashAttention is not used", reason=one_line(error))
        return
    log.info("FlashAttention", faster=round(gain, 2), used=gain >= _MIN_GAIN)
    if gain >= _MIN_GAIN:
        _choose(forward)


def forget() -> None:
    """From now on Triton computes all prompts."""
    _choose(None)


def _choose(forward: Callable[..., Any] | None) -> None:
    global _forward  # noqa: PLW0603 - as `linear_op`'s tiles: the compiled layers do not see it
    _forward = forward


def _may_take(dtype: torch.dtype, device: torch.device) -> bool:
    if dtype not in _DTYPES or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= _CAPABILITY


def _installed(device: torch.device) -> Callable[..., Any] | None:
    """Raises what the package raises as it is imported, but for ImportError."""
    try:
        version = importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    # A restart compiles nothing. The package reads these once, when it is imported.
    major, minor = torch.cuda.get_device_capability(device)
    folder = private_folder(
        models.home() / "cache" / "flash_attention", f"{version}-{major}{minor}"
    )
    if folder is not None:
        os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
        os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(folder))
    try:
        from flash_attn.cute.interface import (  # type: ignore[import-not-found,unused-ignore]
            _flash_attn_fwd,
        )
    except ImportError:
        return None
    forward: Callable[..., Any] = _flash_attn_fwd
    return forward


def private_folder(parent: Path, name: str) -> Path | None:
    """The folder of compiled kernels of that name; None where others could put theirs into it, for
    they are loaded as native code.

    By package and GPU: some of the package's own keys say nothing of the GPU. The package ignores
    files that it cannot load. Of former packages and GPUs the latest few stay.
    """
    folder = parent / name
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for each in (parent, folder):
            status = each.stat()
            if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                log.warning(
                    "FlashAttention's kernels are not kept", reason=f"{each} is not private"
                )
                return None
        os.utime(folder)
        latest = sorted(parent.iterdir(), key=lambda each: each.stat().st_mtime, reverse=True)
        for old in latest[_KEPT_FOLDERS:]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        log.warning("FlashAttention's kernels are not kept", reason=one_line(error))
        return None
    return folder


def _gain(
    forward: Callable[..., Any], heads: int, kv_heads: int, size: int, device: torch.device
) -> float:
    """How many times as fast as Triton's kernel it is; 0 if its answers differ."""
    from worker.engines.transformers.model import triton_attention

    pages = blocks_for(_TRIAL_LENGTH)
    generator = torch.Generator(device).manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        numbers = torch.randn(shape, generator=generator, device=device)
        return numbers.to(torch.bfloat16)

    caches = [random(pages + 1, BLOCK_SIZE, kv_heads, size) for _ in range(2)]
    query = random(_TRIAL_CHUNK, heads, size)
    table = torch.randperm(pages, generator=generator, device=device).int()[None]
    for cache in caches:  # nothing may be read there
        cache[pages] = float("nan")
        cache[table[0, -1].long(), _TRIAL_LENGTH % BLOCK_SIZE :] = float("nan")
    numbers = [[0], [_TRIAL_LENGTH], [0, _TRIAL_CHUNK]]
    rows, lengths, starts = (torch.tensor(each, device=device).int() for each in numbers)
    given: dict[str, Any] = {
        "query": query,
        "key_cache": caches[0],
        "value_cache": caches[1],
        "block_tables": table,
        "rows": rows,
        "lengths": lengths,
        "chunk_starts": starts,
        "scale": size**-0.5,
    }
    expected, actual = torch.empty_like(query), torch.empty_like(query)

    def by_triton() -> None:
        triton_attention.prefill(expected, **given, window=0, softcap=0.0)

    def by_flash() -> None:
        prefill(actual, **given)

    _choose(forward)
    try:
        seconds = _milliseconds(by_triton), _milliseconds(by_flash)
    finally:
        forget()
    off = (actual.float() - expected.float()).abs().max()
    if not off <= _TOLERANCE * expected.abs().max():  # NaN is not
        log.warning("FlashAttention is not used", reason="its answers differ")
        return 0.0
    return seconds[0] / seconds[1]


def _milliseconds(run: Callable[[], None]) -> float:
    run()  # compiles
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times: list[float] = []
    for _ in range(_TRIALS):
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times)
