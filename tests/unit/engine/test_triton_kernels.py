"""The kernels compile for a GPU and fit into it. This needs none, and finds what the interpreter
does not mind: variables that change their type, shapes that the tensor cores do not take.
"""

from typing import Any

import pytest
import torch
import triton

from worker.engines.transformers.model import (
    float8_tuning,
    linear_kernels,
    linear_tiles,
    prefix_tiles,
    triton_attention,
    triton_kernels,
    triton_linear,
    triton_prefill,
    triton_prefix,
)
from worker.engines.transformers.model.step import MAX_PREFIXES
from worker.engines.transformers.tensor_parallel import triton_sum

_OTHERS = {"scale": "fp32", "softcap": "fp32", "to_log2": "fp32"}
_FLOATS = {
    "part_maxima", "part_sums", "parts", "prefix_maxima", "prefix_sums", "prefix_parts",
    "x_scale", "weight_scale",
}  # fmt: skip
_INTEGERS = {
    "block_tables", "rows", "lengths", "chunk_starts", "arrived",
    "prefix_lengths", "members", "starts", "prefix_tokens", "row_of_slot",
}  # fmt: skip
_TENSORS = {
    "query", "key", "value", "key_cache", "value_cache", "sinks", "out", "x", "weight", "bias",
}  # fmt: skip
_ALIGNED = ("query_", "cache_", "table_", "x_", "weight_")
_FLOAT8_KEYS = dict.fromkeys(("key", "value", "key_cache", "value_cache"), "*fp8e4nv")
_FLOAT8 = {"x": "*fp8e4nv", "weight": "*fp8e4nv"}
_FEATURES = {"SOFTCAP": True, "WINDOW": True, "CHUNKED": False, "SINKS": True}
_HOPPER, _AMPERE = 90, 86
_SHARED_MEMORY = {_HOPPER: 232_448, _AMPERE: 101_376}  # bytes a program may have


def types(
    kernel: Any, constants: dict[str, Any], special: dict[str, str] | None = None
) -> dict[str, str]:
    """Of the arguments: all pointers are to bfloat16 but those to lengths and to parts, and those
    that `special` names.
    """
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif special and name in special:
            signature[name] = special[name]
        elif name in _FLOATS:
            signature[name] = "*fp32"
        elif name in _INTEGERS:
            signature[name] = "*i32"
        elif name in _TENSORS:
            signature[name] = "*bf16"
        else:
            signature[name] = _OTHERS.get(name, "i32")
    return signature


def shared_memory(
    kernel: Any,
    constants: dict[str, Any],
    capability: int,
    warps: int,
    stages: int,
    special: dict[str, str] | None = None,
) -> int:
    """Of a program, in bytes."""
    compiled = compile_kernel(kernel, constants, capability, warps, stages, special)
    return int(compiled.metadata.shared)


def compile_kernel(
    kernel: Any,
    constants: dict[str, Any],
    capability: int,
    warps: int,
    stages: int,
    special: dict[str, str] | None = None,
) -> Any:
    """Compiles a kernel whose tensors and strides are aligned to 16 bytes, as they are."""
    signature = types(kernel, constants, special)
    aligned = {}
    for index, (name, kind) in enumerate(signature.items()):
        if kind.startswith("*") or name.startswith(_ALIGNED) or name in "NK":
            aligned[(index,)] = [["tt.divisibility", 16]]
    return triton.compile(
        triton.compiler.ASTSource(kernel, signature, constants, aligned),
        target=triton.backends.compiler.GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages},
    )


@pytest.mark.parametrize(
    ("capability", "special"), [(_AMPERE, {}), (_HOPPER, _FLOAT8_KEYS)], ids=["", "float8"]
)
@pytest.mark.parametrize("prefix", [False, True])
def test_decoding(prefix: bool, capability: int, special: dict[str, str]) -> None:
    check_decoding(prefix, capability, special, 128)


@pytest.mark.parametrize(("capability", "size"), [(_AMPERE, 256), (_AMPERE, 512), (_HOPPER, 512)])
def test_decoding_large_heads(capability: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        triton_attention, "has_large_shared_memory", lambda _: capability == _HOPPER
    )
    check_decoding(size == 256, capability, {}, size)


def check_decoding(prefix: bool, capability: int, special: dict[str, str], size: int) -> None:
    block, stages = triton_attention._decode_tile(size, torch.device("cuda"))
    constants = {
        "GROUP": 4, "PADDED_GROUP": 16, "SIZE": size, "PADDED_SIZE": size, "PAGE": 16,
        "BLOCK": block, "MAX_PART": triton_attention._MAX_PART,
        "PREFIX": prefix, "PREFIX_MAX_PART": triton_prefix._MAX_PART,
        **_FEATURES, "WINDOW": not prefix, "PDL": capability >= _HOPPER,
    }  # fmt: skip
    used = shared_memory(
        triton_kernels.decode_kernel,
        constants,
        capability,
        triton_attention._DECODE_WARPS,
        stages,
        special,
    )
    assert used < _SHARED_MEMORY[capability]


def test_combining() -> None:
    constants = {
        "SIZE": 80, "PADDED_SIZE": 128, "HEADS": 4, "COMBINED": triton_attention._COMBINED_PARTS,
        "BLOCK": 64, "MAX_PART": 2048, "PREFIX": True, "WINDOW": True, "CHUNKED": True,
        "PDL": False,
    }  # fmt: skip
    shared_memory(triton_kernels.combine_kernel, constants, _AMPERE, 2, 3)


@pytest.mark.parametrize(
    ("capability", "tiles", "size", "special"),
    [
        (_AMPERE, prefix_tiles._SMALL_TILES, 128, {}),
        (_AMPERE, prefix_tiles._SMALL_TILES, 256, {}),
        (_HOPPER, prefix_tiles._TILES, 128, _FLOAT8_KEYS),
        (_HOPPER, prefix_tiles._TILES, 256, {}),
        (_HOPPER, prefix_tiles._TILES, 512, {}),
    ],
)
def test_prefixes(
    capability: int,
    tiles: dict[int, prefix_tiles.PrefixTile],
    size: int,
    special: dict[str, str],
) -> None:
    tile = tiles[size]
    constants = {
        "GROUP": 4, "QUERIES": tile.queries, "SIZE": size, "PADDED_SIZE": size, "PAGE": 16,
        "BLOCK": tile.keys, "MAX_PART": triton_prefix._MAX_PART, "PREFIXES": MAX_PREFIXES,
        "SOFTCAP": True, "PDL": capability >= _HOPPER,
    }  # fmt: skip
    used = shared_memory(
        triton_prefix.prefix_kernel, constants, capability, triton_prefix._WARPS, tile.stages,
        special,
    )  # fmt: skip
    assert used < _SHARED_MEMORY[capability]


@pytest.mark.parametrize(
    ("capability", "tiles", "size", "features", "special"),
    [
        (_HOPPER, triton_attention._TILES, 128, dict.fromkeys(_FEATURES, False), {}),
        (_HOPPER, triton_attention._TILES, 128, dict.fromkeys(_FEATURES, False), _FLOAT8_KEYS),
        (_HOPPER, triton_attention._TILES, 256, _FEATURES, {}),
        (_AMPERE, triton_attention._SMALL_TILES, 128, {**_FEATURES, "CHUNKED": True}, {}),
        (_AMPERE, triton_attention._SMALL_TILES, 512, _FEATURES, {}),
        (_HOPPER, triton_attention._TILES, 512, _FEATURES, {}),
    ],
)
def test_prefill(
    capability: int,
    tiles: dict[int, triton_attention.Tile],
    size: int,
    features: dict[str, bool],
    special: dict[str, str],
) -> None:
    tile = tiles[size]
    constants = {
        "GROUP": 4, "QUERIES": tile.queries, "KEYS": tile.keys, "SIZE": size, "PADDED_SIZE": size,
        "PAGE": 16, **features,
    }  # fmt: skip
    used = shared_memory(
        triton_prefill.prefill_kernel, constants, capability, tile.warps, tile.stages, special
    )
    assert used < _SHARED_MEMORY[capability]


_LINEAR = {
    "METHOD": "dot", "ACTIVATION": "", "SCALED": False, "ROW_SCALED": False, "BIASED": False,
    "EVEN_N": True, "EVEN_K": True, "PREFETCH": 8,
}  # fmt: skip


def measured(activation: str) -> set[tuple[linear_tiles.Tile, int]]:
    """All tiles that are tried on a GPU, with the most rows that they are tried for."""
    rows: dict[linear_tiles.Tile, int] = {}
    for outputs in (1024, 128_256):
        key = linear_tiles.LinearKey(torch.Size((outputs, 64)), torch.bfloat16, activation)
        for bucket in linear_tiles.ROW_BUCKETS:
            for tile in linear_tiles.candidates(key, bucket):
                rows[tile] = max(16, bucket)
    return set(rows.items())


_EIGHT = linear_tiles.Tile(64, 256, 1, 4, 4, "swapped")


@pytest.mark.parametrize(
    ("capability", "tile", "rows", "activation", "special"),
    [
        *[(_HOPPER, *tile, "", {}) for tile in sorted(measured(""))],
        *[(_HOPPER, *tile, "silu", {}) for tile in sorted(measured("silu"))],
        (_HOPPER, _EIGHT, 16, "", _FLOAT8),
        (_HOPPER, _EIGHT, 16, "silu", _FLOAT8),
        *[(_HOPPER, tile, 1, "silu", {"weight": "*fp8e4nv"}) for tile in float8_tuning._GATED],
        (_HOPPER, linear_tiles.Tile(32, 256, 2, 4, 4), 64, "", {"weight": "*fp8e4nv"}),
        (_AMPERE, linear_tiles.Tile(64, 128, 1, 4, 4, "swapped"), 16, "", {}),
        (_AMPERE, linear_tiles.Tile(8, 512, 1, 2, 5, "sum"), 16, "silu", {}),
    ],
)
def test_linear(
    capability: int,
    tile: linear_tiles.Tile,
    rows: int,
    activation: str,
    special: dict[str, str],
) -> None:
    constants = _LINEAR | {
        "BLOCK_M": 1 if tile.method == "sum" else rows, "BLOCK_N": tile.columns,
        "BLOCK_K": tile.inner, "SPLIT_K": tile.split, "METHOD": tile.method, "STAGES": tile.stages,
        "ACTIVATION": activation, "PDL": capability >= _HOPPER, "SCALED": bool(special),
    }  # fmt: skip
    used = shared_memory(
        linear_kernels.linear_kernel, constants, capability, tile.warps, tile.stages, special
    )
    assert used < _SHARED_MEMORY[capability]


def test_gates() -> None:
    constants = {"ACTIVATION": "gelu", "BLOCK": triton_linear._GATE_BLOCK, "PDL": False}
    bfloats = dict.fromkeys(("gate", "up", "out"), "*bf16")
    shared_memory(linear_kernels.gate_kernel, constants, _AMPERE, 4, 3, bfloats)


_DECODING = {
    "GROUP": 4, "PADDED_GROUP": 16, "SIZE": 128, "PADDED_SIZE": 128, "PAGE": 16, "BLOCK": 64,
    "MAX_PART": 2048, "PREFIX": True, "PREFIX_MAX_PART": 1024, **_FEATURES, "WINDOW": False,
}  # fmt: skip
_COMBINING = {
    "SIZE": 128, "PADDED_SIZE": 128, "HEADS": 4, "COMBINED": 16, "BLOCK": 64, "MAX_PART": 2048,
    "PREFIX": True, "WINDOW": True, "CHUNKED": False,
}  # fmt: skip
_SHARING = {
    "GROUP": 4, "QUERIES": 64, "SIZE": 128, "PADDED_SIZE": 128, "PAGE": 16, "BLOCK": 64,
    "MAX_PART": 1024, "PREFIXES": MAX_PREFIXES, "SOFTCAP": False,
}  # fmt: skip
_STORING = {"KV_HEADS": 8, "PADDED_HEADS": 8, "SIZE": 128, "PADDED_SIZE": 128}


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    ("kernel", "constants", "special"),
    [
        (triton_kernels.decode_kernel, _DECODING, {}),
        (triton_kernels.combine_kernel, _COMBINING, {}),
        (triton_kernels.store_kernel, _STORING, {"slot_mapping": "*i64"}),
        (triton_prefix.prefix_kernel, _SHARING, {}),
        (
            linear_kernels.gate_kernel,
            {"ACTIVATION": "silu", "BLOCK": 1024},
            dict.fromkeys(("gate", "up", "out"), "*bf16"),
        ),
    ],
    ids=["decode", "combine", "store", "prefix", "gate"],
)
def test_a_kernel_that_is_launched_early_waits_before_all_else(
    kernel: Any, constants: dict[str, Any], special: dict[str, str], early: bool
) -> None:
    compiled = compile_kernel(kernel, {**constants, "PDL": early}, _HOPPER, 4, 3, special)
    ptx = compiled.asm["ptx"]
    assert ("griddepcontrol" in ptx) == early
    if early:
        wait, go = (ptx.index(f"griddepcontrol.{name}") for name in ("wait", "launch_dependents"))
        memory = min(
            ptx.index(f"{name}.global") for name in ("ld", "st") if f"{name}.global" in ptx
        )
        assert wait < go < memory
        assert not {"bra", "ret"} & set(ptx[ptx.index(".entry") : wait].replace(";", " ").split())


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("capability", [90, 86])
def test_a_sum_over_ranks_moves_sixteen_bytes_at_once(dtype: str, capability: int) -> None:
    kernel = triton_sum.sum_kernel
    constants = {
        "RANK": 1, "RANKS": 4, "PROGRAMS": triton_sum.PROGRAMS, "CHUNK": triton_sum.CHUNK,
        "MAX_LOOKS": triton_sum._MAX_LOOKS,
    }  # fmt: skip
    pointers = {"values": dtype, "out": dtype, "addresses": "i64", "counts": "i64"}
    signature, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        signature[name] = f"*{pointers[name]}" if name in pointers else "i32"
        if name in constants:
            signature[name] = "constexpr"
        else:
            aligned[(index,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        triton.compiler.ASTSource(kernel, signature, constants, aligned),
        target=triton.backends.compiler.GPUTarget("cuda", capability, 32),
        options={"num_warps": triton_sum._WARPS},
    )
    assert "st.global.v4.b32" in compiled.asm["ptx"]
    assert "sys.release" in compiled.asm["ptx"] and "sys.acquire" in compiled.asm["ptx"]


@pytest.mark.parametrize("table", [prefix_tiles._TILES, prefix_tiles._SMALL_TILES])
def test_prefixes_are_whole_reads(table: dict[int, prefix_tiles.PrefixTile]) -> None:
    """The kernel reads `keys` at a time without a mask, and never beyond a prefix."""
    for tile in table.values():
        assert prefix_tiles.PREFIX_STRIDE % tile.keys == 0
