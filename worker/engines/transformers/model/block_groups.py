"""Which layers share a block of the KV cache.

A layer with a window needs the keys and values of its newest tokens alone, and its blocks are given
back as the window moves on; a layer that sees everything keeps them. So layers with another window
have other blocks. All groups have equally many layers: then blocks of all groups are of one size,
and one pool serves them all (the method of vLLM's hybrid KV cache manager,
https://docs.vllm.ai/en/stable/design/hybrid_kv_cache_manager/).
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from worker.engines.transformers.model.window import Window

_MAX_GROUPS = 8  # each has a block table and a slot mapping
_MAX_UNUSED = 0.25  # of the memory: a type of layers may not fill its last group


class LayerPlace(NamedTuple):
    """A layer uses the memory of place `layer` in the blocks of its group."""

    group: int
    layer: int


class BlockGroups(NamedTuple):
    """What is in the blocks of a cache."""

    places: tuple[LayerPlace, ...]  # of each layer
    windows: tuple[Window, ...]  # of each group
    size: int  # layers of a block

    @property
    def per_token(self) -> float:
        """How many blocks the memory of one token of all layers makes."""
        return len(self.places) / self.size


def group_layers(windows: Sequence[Window], shapes: Sequence[Hashable]) -> BlockGroups:
    """`windows`, `shapes`: of each layer. A single group, without a window if they differ, where
    the shapes do or too much memory would be unused.
    """
    by_window: dict[Window, list[int]] = {}
    for layer, window in enumerate(windows):
        by_window.setdefault(window, []).append(layer)
    size = min(len(layers) for layers in by_window.values())
    places: dict[int, LayerPlace] = {}
    group_windows: list[Window] = []
    for window, layers in sorted(by_window.items()):
        for number, layer in enumerate(layers):
            places[layer] = LayerPlace(len(group_windows) + number // size, number % size)
        group_windows += [window] * -(-len(layers) // size)
    unused = len(group_windows) * size / len(windows) - 1
    if len(by_window) > 1 and (
        len(set(shapes)) > 1 or len(group_windows) > _MAX_GROUPS or unused > _MAX_UNUSED
    ):
        return group_layers([Window()] * len(windows), shapes)
    ordered = tuple(places[layer] for layer in range(len(windows)))
    return BlockGroups(ordered, tuple(group_windows), size)
