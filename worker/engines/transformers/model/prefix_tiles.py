"""How the kernel of shared prefixes goes about its work, without loading Triton: the cache and the
scheduler have to know for how many rows a prefix is read once.
"""

from functools import cache
from typing import NamedTuple

import torch

PREFIX_STRIDE = 64  # tokens: prefixes are multiples of it, and it is one of `keys`
PREFIX_TILE_COST = 3  # reading a prefix for a tile takes as long as for so many rows, on an H200
_LARGE_SHARED_MEMORY = 200_000  # bytes a program may have: Hopper's 232,448 and more


class PrefixTile(NamedTuple):
    """What a program reads the keys of a prefix for."""

    queries: int  # rows * the query heads that share a key head
    keys: int  # read at a time
    stages: int

    def rows(self, group: int) -> int:
        """For how many rows keys are read once, where `group` query heads share a key head."""
        return max(1, self.queries // group)


# By head size, rounded up to a power of two. 64 queries are what a warp group of Hopper multiplies
# at once.
_TILES = {
    16: PrefixTile(64, 64, 3),
    32: PrefixTile(64, 64, 3),
    64: PrefixTile(64, 64, 3),
    128: PrefixTile(64, 64, 3),
    256: PrefixTile(64, 32, 3),
    512: PrefixTile(64, 32, 2),
}
# For GPUs that have less: up to 98 KiB.
_SMALL_TILES = {
    16: PrefixTile(64, 64, 3),
    32: PrefixTile(64, 64, 3),
    64: PrefixTile(64, 64, 3),
    128: PrefixTile(64, 64, 3),
    256: PrefixTile(64, 32, 2),
}


def prefix_tile(padded_size: int, device: torch.device) -> PrefixTile | None:
    """For heads of that size, a power of two from 16 on. None: they have no room in the GPU's
    shared memory, so nothing is shared.
    """
    if device.type == "cuda" and not has_large_shared_memory(device):
        return _SMALL_TILES.get(padded_size)
    return _TILES.get(padded_size)


def prefix_tile_rows(head_size: int, group: int, device: torch.device) -> int:
    """For how many rows a prefix is read once; 0: reading it once would save nothing."""
    tile = prefix_tile(padded_head_size(head_size), device)
    if tile is None or tile.rows(group) <= PREFIX_TILE_COST:
        return 0
    return tile.rows(group)


def padded_head_size(size: int) -> int:
    """tl.dot needs powers of two from 16 on."""
    return max(16, 1 << (size - 1).bit_length())


@cache
def has_large_shared_memory(device: torch.device) -> bool:
    """Whether a program may have as much as on Hopper."""
    properties = torch.cuda.get_device_properties(device)
    return bool(properties.shared_memory_per_block_optin >= _LARGE_SHARED_MEMORY)
