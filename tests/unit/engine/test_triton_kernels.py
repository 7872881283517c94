"""The kernels compile for a GPU and fit into it. This needs none, and finds what the interpreter
does not mind: variables that change their type, shapes that the tensor cores do not take.
"""

from typing import Any

import pytest
import triton

from worker.engines.transformers.model import triton_attention, triton_kernels

_OTHERS = {"scale": "fp32", "softcap": "fp32", "to_log2": "fp32"}
_FLOATS = {"part_maxima", "part_sums", "parts"}
_INTEGERS = {"block_tables", "rows", "lengths", "chunk_starts"}
_TENSORS = {"query", "key", "value", "key_cache", "value_cache", "sinks", "out"}
_FEATURES = {"SOFTCAP": True, "WINDOW": True, "SINKS": True}
_HOPPER, _AMPERE = 90, 86
_SHARED_MEMORY = {_HOPPER: 232_448, _AMPERE: 101_376}  # bytes a program may have


def types(kernel: Any, constants: dict[str, Any]) -> dict[str, str]:
    """Of the arguments: all pointers are to bfloat16 but those to lengths and to parts."""
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
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
    kernel: Any, constants: dict[str, Any], capability: int, warps: int, stages: int
) -> int:
    """Compiles a kernel whose tensors and strides are aligned to 16 bytes, as they are."""
    signature = types(kernel, constants)
    aligned = {}
    for index, (name, kind) in enumerate(signature.items()):
        if kind.startswith("*") or name.startswith(("query_", "cache_", "table_")):
            aligned[(index,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        triton.compiler.ASTSource(kernel, signature, constants, aligned),
        target=triton.backends.compiler.GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    return int(compiled.metadata.shared)


def test_decoding() -> None:
    constants = {
        "GROUP": 4, "PADDED_GROUP": 16, "SIZE": 128, "PADDED_SIZE": 128, "PAGE": 16,
        "BLOCK": triton_attention._BLOCK, "MAX_PART": triton_attention._MAX_PART, **_FEATURES,
    }  # fmt: skip
    used = shared_memory(
        triton_kernels.decode_kernel,
        constants,
        _AMPERE,
        triton_attention._DECODE_WARPS,
        triton_attention._DECODE_STAGES,
    )
    assert used < _SHARED_MEMORY[_AMPERE]


def test_combining() -> None:
    constants = {
        "SIZE": 80, "PADDED_SIZE": 128, "HEADS": 4, "COMBINED": triton_attention._COMBINED_PARTS,
        "BLOCK": 64, "MAX_PART": 2048, "WINDOW": True,
    }  # fmt: skip
    shared_memory(triton_kernels.combine_kernel, constants, _AMPERE, 2, 3)


@pytest.mark.parametrize(
    ("capability", "tiles", "size", "features"),
    [
        (_HOPPER, triton_attention._TILES, 128, dict.fromkeys(_FEATURES, False)),
        (_HOPPER, triton_attention._TILES, 256, _FEATURES),
        (_AMPERE, triton_attention._SMALL_TILES, 128, _FEATURES),
    ],
)
def test_prefill(
    capability: int,
    tiles: dict[int, triton_attention.Tile],
    size: int,
    features: dict[str, bool],
) -> None:
    tile = tiles[size]
    constants = {
        "GROUP": 4, "QUERIES": tile.queries, "KEYS": tile.keys, "SIZE": size, "PADDED_SIZE": size,
        "PAGE": 16, **features,
    }  # fmt: skip
    used = shared_memory(
        triton_kernels.prefill_kernel, constants, capability, tile.warps, tile.stages
    )
    assert used < _SHARED_MEMORY[capability]
