"""The blocks of the KV cache: how many sequences use each, and what the unused ones still hold."""

from collections import OrderedDict


class BlockPool:
    """`count` blocks. A block that nobody uses keeps its content, known by its hash, until it is
    taken for something else: the least recently used first.
    """

    def __init__(self, count: int) -> None:
        self._users = [0] * count
        self._hashes: list[bytes | None] = [None] * count
        self._by_hash: dict[bytes, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))

    @property
    def unused(self) -> int:
        """How many blocks may be taken."""
        return len(self._unused)

    def find(self, block_hash: bytes) -> int | None:
        """The block with this content, used or not."""
        return self._by_hash.get(block_hash)

    def is_unused(self, block: int) -> bool:
        """Whether no sequence uses it."""
        return block in self._unused

    def take(self, count: int) -> list[int]:
        """Blocks for new content, of which the caller has made sure that there are so many."""
        blocks: list[int] = []
        for _ in range(count):
            block, _ = self._unused.popitem(last=False)
            self.forget(block)
            self._users[block] = 1
            blocks.append(block)
        return blocks

    def share(self, block: int) -> None:
        """One more sequence uses the block."""
        self._users[block] += 1
        self._unused.pop(block, None)

    def publish(self, block: int, block_hash: bytes) -> None:
        """The block has this content. Of two equal blocks the first one is shared."""
        if self._hashes[block] is None and block_hash not in self._by_hash:
            self._hashes[block] = block_hash
            self._by_hash[block_hash] = block

    def forget(self, block: int) -> None:
        """The block's content is not shared any more."""
        block_hash = self._hashes[block]
        if block_hash is not None:
            self._hashes[block] = None
            del self._by_hash[block_hash]

    def release(self, blocks: list[int]) -> None:
        """One sequence less uses these blocks, in their order. The end of a prompt is worth less
        than its beginning, so it is taken first; a block without a hash is worth nothing.
        """
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._unused[block] = None
                if self._hashes[block] is None:
                    self._unused.move_to_end(block, last=False)

    def clear(self) -> None:
        """Nothing is known of any block's content."""
        self._by_hash.clear()
        self._hashes = [None] * len(self._hashes)
