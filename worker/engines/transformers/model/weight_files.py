"""How many bytes the weights of a model folder take once they are loaded, from the headers of its
safetensors files: a few kilobytes to read, whatever the model's size.

Nothing on disk is trusted: headers have a bound, and what they say is checked.
"""

import math
import struct
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import msgspec
import torch
from msgspec import Meta

_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000  # the format's own bound
_MAX_INDEX_BYTES = 100_000_000
_MAX_FILES = 10_000
_MAX_DIMENSIONS = 8
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PACKED = "_packed"  # how the names end of several small integers in one number
# The others (integers, and 8 bits or fewer) keep their format when they are loaded.
_CONVERTED = ("F64", "F32", "F16", "BF16")


# Bounded, as the product of many large numbers takes minutes: a header may have millions of digits.
_Size = Annotated[int, Meta(ge=0, lt=1 << 48)]
_Decoded = TypeVar("_Decoded")


class _Tensor(msgspec.Struct):
    """An entry of a header."""

    dtype: str
    shape: Annotated[list[_Size], Meta(max_length=_MAX_DIMENSIONS)]
    data_offsets: tuple[_Size, _Size]  # bytes behind the header


class _Index(msgspec.Struct):
    """Of weights in several files."""

    weight_map: dict[str, str]  # the file of each tensor


class WeightFiles(NamedTuple):
    """What a folder's files hold."""

    bytes_on_disk: int
    converted: int  # numbers that take the format that the model is loaded in
    kept: int  # bytes of the others
    packed: int = 0  # of these, bytes of packed integers

    def bytes_in(self, dtype: torch.dtype, packed_bits: int | None = None) -> int:
        """Bytes in memory, where the model is loaded in that format. `packed_bits`: of a packed
        integer, where quantized weights are dequantized as they are read; None: they are kept.
        """
        if packed_bits is None:
            return self.converted * dtype.itemsize + self.kept
        quantized = self.kept - self.packed + self.packed * 8 // packed_bits
        return (self.converted + quantized) * dtype.itemsize


def read_headers(folder: Path) -> WeightFiles:
    """Of the files that transformers would load. Raises ValueError for files that are not
    safetensors, OSError for those that cannot be read.
    """
    on_disk, converted, kept, packed = 0, 0, 0, 0
    for file in _files(folder):
        for name, tensor in _header(file).items():
            begin, end = tensor.data_offsets
            on_disk += end - begin
            if tensor.dtype in _CONVERTED:
                converted += math.prod(tensor.shape)
                continue
            kept += end - begin
            if name.endswith(_PACKED):
                packed += end - begin
    return WeightFiles(on_disk, converted, kept, packed)


def _files(folder: Path) -> list[Path]:
    """A folder may hold the same weights twice, as one file and in parts."""
    single, index = folder / _SINGLE, folder / _INDEX
    if single.is_file() or not index.is_file():
        return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))[:_MAX_FILES]
    if index.stat().st_size > _MAX_INDEX_BYTES:
        raise ValueError(f"{index} is too large")
    names = sorted(set(_decode(index.read_bytes(), _Index, index).weight_map.values()))
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{index} names files outside its folder")
    return [folder / name for name in names[:_MAX_FILES]]


def _header(file: Path) -> dict[str, _Tensor]:
    """Its tensors, by name. Raises ValueError, OSError."""
    with file.open("rb") as opened:
        (length,) = _LENGTH.unpack(opened.read(_LENGTH.size).ljust(_LENGTH.size, b"\0"))
        rest = file.stat().st_size - _LENGTH.size
        if not 0 < length <= min(rest, _MAX_HEADER_BYTES):
            raise ValueError(f"{file} is not a safetensors file, or broken off")
        header = opened.read(length)
    entries = _decode(header, dict[str, msgspec.Raw], file)
    entries.pop("__metadata__", None)
    tensors = {name: _decode(bytes(entry), _Tensor, file) for name, entry in entries.items()}
    for tensor in tensors.values():
        _check(tensor, rest - length, file)
    return tensors


def _decode(content: bytes, kind: type[_Decoded], file: Path) -> _Decoded:
    """The JSON of `file`. Raises ValueError."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} does not say which weights it has: {error}") from error


def _check(tensor: _Tensor, size: int, file: Path) -> None:
    """`size`: bytes behind the header. Raises ValueError."""
    begin, end = tensor.data_offsets
    if not 0 <= begin <= end <= size:
        raise ValueError(f"{file} is broken off: it has {size} bytes of weights, and needs {end}")
    if math.prod(tensor.shape) > 8 * (end - begin):
        raise ValueError(f"{file} has a tensor whose shape and size differ")
