"""Which decoding sequences share which blocks, so that attention reads those once for all of them.

A radix tree over the sequences' block numbers. It changes when a sequence begins to decode or
leaves; a step costs nothing. A sequence may share much with few others and less with many: it is
grouped with those with whom the most reading is saved.
"""

from worker.engines.transformers.cache.slot_cache import common_prefix
from worker.engines.transformers.model.prefix_tiles import PREFIX_STRIDE, PREFIX_TILE_COST
from worker.engines.transformers.model.step import MAX_PREFIXES, SharedPrefix

_MIN_TOKENS = 256  # of a prefix: a shorter one is read as fast with the rows' own keys


class _Node:
    """Sequences that have the first `depth` blocks of `path` in common, and no more."""

    def __init__(self, path: list[int], depth: int, parent: "_Node | None") -> None:
        self.path = path
        self.depth = depth
        self.parent = parent
        self.children: dict[tuple[int, ...], _Node | int] = {}  # by their next blocks; int: a slot
        self.slots: set[int] = set()  # the sequences that share no more with another one


class SharedPrefixTree:
    """Used by one thread."""

    def __init__(self, block_size: int, tile_rows: int) -> None:
        """`tile_rows`: for so many rows a prefix is read once."""
        self._tile_rows = tile_rows
        self._block_size = block_size
        self._stride = max(1, PREFIX_STRIDE // block_size)
        self._root = _Node([], 0, None)
        self._nodes: set[_Node] = set()  # without the root
        self._homes: dict[int, _Node] = {}  # by slot
        self._blocks: dict[int, list[int]] = {}  # by slot
        self._prefixes: list[SharedPrefix] = []
        self._changed = False

    @property
    def prefixes(self) -> list[SharedPrefix]:
        """The groups, at most MAX_PREFIXES; the same object as before if they have not changed."""
        if self._changed:
            self._changed = False
            prefixes = self._group()
            if prefixes != self._prefixes:
                self._prefixes = prefixes
        return self._prefixes

    def add(self, slot: int, blocks: list[int]) -> None:
        """A sequence decodes from now on; `blocks` are those that are whole and will not change."""
        self.remove(slot)
        self._blocks[slot] = blocks
        node = self._root
        while True:
            key = self._key(blocks, node.depth)
            child = node.children.get(key)
            if child is None:
                self._place(slot, node)
                return
            path = self._blocks[child] if isinstance(child, int) else child.path
            end = len(path) if isinstance(child, int) else child.depth
            more = common_prefix(blocks[node.depth : end], path[node.depth : end])
            shared = node.depth + more // self._stride * self._stride
            if isinstance(child, int) or shared < child.depth:
                node = self._split(node, key, child, shared)
            else:
                node = child

    def remove(self, slot: int) -> None:
        """The slot's sequence has left, if it was there."""
        node = self._homes.pop(slot, None)
        if node is None:
            return
        self._changed = True
        node.slots.remove(slot)
        key = self._key(self._blocks.pop(slot), node.depth)
        if node.children.get(key) == slot:
            del node.children[key]
        self._join(node)

    def _key(self, blocks: list[int], depth: int) -> tuple[int, ...]:
        """The blocks that tell the children of a node of that depth apart; empty: there are not
        enough.
        """
        end = depth + self._stride
        return tuple(blocks[depth:end]) if end <= len(blocks) else ()

    def _place(self, slot: int, node: _Node) -> None:
        node.slots.add(slot)
        self._homes[slot] = node
        self._changed = True
        key = self._key(self._blocks[slot], node.depth)
        if key:
            node.children[key] = slot

    def _split(self, node: _Node, key: tuple[int, ...], child: _Node | int, depth: int) -> _Node:
        """A node between `node` and its child, which shares `depth` blocks with a new sequence."""
        path = self._blocks[child] if isinstance(child, int) else child.path
        between = _Node(path, depth, node)
        node.children[key] = between
        self._nodes.add(between)
        if isinstance(child, int):
            node.slots.remove(child)
            self._place(child, between)
        else:
            child.parent = between
            between.children[self._key(path, depth)] = child
        return between

    def _join(self, node: _Node) -> None:
        """Removes the node if a single sequence or node is left in it."""
        parent = node.parent
        nodes = [child for child in node.children.values() if isinstance(child, _Node)]
        if parent is None or len(nodes) + len(node.slots) > 1:
            return
        self._nodes.remove(node)
        del parent.children[self._key(node.path, parent.depth)]
        for child in nodes:
            child.parent = parent
            parent.children[self._key(child.path, parent.depth)] = child
        for slot in node.slots:
            self._place(slot, parent)

    def _group(self) -> list[SharedPrefix]:
        """From the longest prefixes to the shortest, those who gain more with others left over."""
        groups: list[SharedPrefix] = []
        left: dict[_Node, list[int]] = {}
        for node in sorted(self._nodes, key=_depth, reverse=True):
            slots = sorted([*node.slots, *left.pop(node, ())])
            prefix = SharedPrefix(node.depth * self._block_size, tuple(slots))
            parent_tokens = 0 if node.parent is None else node.parent.depth * self._block_size
            if self._saved(prefix) >= self._saved_above(len(slots), parent_tokens):
                groups.append(prefix)
            elif node.parent is not None:
                left.setdefault(node.parent, []).extend(slots)
        worthy = [it for it in groups if it.tokens >= _MIN_TOKENS and self._saved(it) > 0]
        return sorted(worthy, key=self._saved, reverse=True)[:MAX_PREFIXES]

    def _saved(self, prefix: SharedPrefix) -> int:
        return prefix.saved_tokens(self._tile_rows)

    def _saved_above(self, rows: int, tokens: int) -> int:
        """What so many rows save as some of many that share `tokens`."""
        return rows * tokens * (self._tile_rows - PREFIX_TILE_COST) // self._tile_rows


def _depth(node: _Node) -> int:
    return node.depth
