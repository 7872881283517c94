"""Blocks for each sequence, as many as it has tokens; equal beginnings are shared, not copied.

The method is vLLM's (Kwon et al., 2023, https://arxiv.org/abs/2309.06180). A block is shared once
the step that fills it is queued, as the device computes steps in their order.
"""

from collections.abc import Collection

from worker.engines.transformers.cache.block_hashes import first_parent, hash_blocks
from worker.engines.transformers.cache.block_pool import BlockPool
from worker.engines.transformers.cache.manager import Allocation, CacheRequest, Refusal

_WORTH_WAITING = 64  # tokens that a prompt must gain by waiting for another one


class _Pages:
    """The blocks of one sequence."""

    def __init__(
        self, blocks: list[int], hashes: list[bytes], computed: int, group: int, hits: int
    ) -> None:
        self.blocks = blocks
        self.hits = hits  # blocks that others had computed
        self.hashes = hashes  # of whole blocks; the first `computed // block_size` are published
        self.computed = computed  # tokens
        self.tail: list[int] = []  # tokens of an answer, behind the last hash
        self.group = group
        self.shared = group >= 0  # whether others may use its blocks


class PagedCache:
    """Keeps the KVCacheManager protocol."""

    def __init__(self, slots: int, blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._pool = BlockPool(blocks)
        self._free_slots = list(range(slots))
        self._pages: dict[int, _Pages] = {}  # by slot
        self._pending: dict[bytes, int] = {}  # hashes that a prompt in prefill will publish: slot
        self.prompt_tokens = 0
        self.cached_tokens = 0

    @property
    def free_tokens(self) -> int:
        """For how many tokens there is room."""
        return self._pool.unused * self._block_size

    def allocate(self, request: CacheRequest) -> Allocation | Refusal:
        """See the protocol. Blocks for the whole prompt and the token after it."""
        if not self._free_slots:
            return Refusal.NO_ROOM
        hits = self._hits(request)
        if self._worth_waiting(request, len(hits)):
            return Refusal.WORTH_WAITING
        count = self._blocks_for(len(request.ids) + 1)
        revived = sum(self._pool.is_unused(block) for block in hits)
        reserved = self._blocks_for(request.reserved_tokens)
        if self._pool.unused - revived < count - len(hits) + reserved:
            return Refusal.NO_ROOM
        slot = self._free_slots.pop()
        for block in hits:
            self._pool.share(block)
        cached = len(hits) * self._block_size
        blocks = hits + self._pool.take(count - len(hits))
        self._pages[slot] = _Pages(blocks, list(request.hashes), cached, request.group, len(hits))
        if request.group >= 0:
            for block_hash in request.hashes[len(hits) :]:
                self._pending.setdefault(block_hash, slot)
        self.prompt_tokens += len(request.ids)
        self.cached_tokens += cached
        shared = (len(hits) - revived) * self._block_size
        return Allocation(slot, cached, blocks=tuple(blocks), shared=shared)

    def _hits(self, request: CacheRequest) -> list[int]:
        """Blocks that hold the prompt's beginning; its last token is always left out."""
        hits: list[int] = []
        if not request.reuse or request.group < 0:
            return hits
        for block_hash in request.hashes[: (len(request.ids) - 1) // self._block_size]:
            block = self._pool.find(block_hash)
            if block is None:
                break
            hits.append(block)
        return hits

    def _worth_waiting(self, request: CacheRequest, hits: int) -> bool:
        """Whether so much of the prompt is being computed for others that it gains by waiting."""
        if not request.reuse or request.group < 0:
            return False
        usable = request.hashes[: (len(request.ids) - 1) // self._block_size]
        last = hits + -(-_WORTH_WAITING // self._block_size)
        return last <= len(usable) and usable[last - 1] in self._pending

    def grow(self, slot: int, length: int) -> tuple[int, ...] | None:
        """See the protocol."""
        pages = self._pages[slot]
        missing = self._blocks_for(length) - len(pages.blocks)
        if missing <= 0:
            return ()
        if missing > self._pool.unused:
            return None
        blocks = self._pool.take(missing)
        pages.blocks += blocks
        return tuple(blocks)

    def extend(self, slot: int, tokens: list[int]) -> None:
        """See the protocol."""
        pages = self._pages[slot]
        before = pages.computed // self._block_size
        pages.computed += len(tokens)
        self._hash_answer(pages, tokens)
        for index in range(before, min(pages.computed // self._block_size, len(pages.hashes))):
            block_hash = pages.hashes[index]
            if self._pending.get(block_hash) == slot:
                del self._pending[block_hash]
            if pages.shared:
                self._pool.publish(pages.blocks[index], block_hash)

    def _hash_answer(self, pages: _Pages, tokens: list[int]) -> None:
        """Hashes the blocks that lie behind the prompt's whole ones."""
        behind = pages.computed - len(pages.hashes) * self._block_size - len(pages.tail)
        if behind <= 0:
            return
        pages.tail += tokens[-behind:]
        parent = pages.hashes[-1] if pages.hashes else first_parent(pages.group)
        hashes = hash_blocks(pages.tail, self._block_size, parent)
        pages.hashes += hashes
        del pages.tail[: len(hashes) * self._block_size]

    def release(self, slot: int) -> None:
        """See the protocol."""
        pages = self._pages.get(slot)
        if pages is None:
            return
        self._withdraw(slot)
        del self._pages[slot]
        self._pool.release(pages.blocks)
        self._free_slots.append(slot)

    def invalidate(self, slot: int) -> None:
        """See the protocol. Blocks that others share were right before this sequence came."""
        pages = self._pages.get(slot)
        if pages is None:
            return
        pages.shared = False
        for block in pages.blocks[pages.hits :]:
            self._pool.forget(block)

    def clear(self) -> None:
        """See the protocol."""
        self._pool.clear()
        self._pending.clear()
        for pages in self._pages.values():
            pages.shared = False

    def release_all_but(self, taken: Collection[int]) -> None:
        """See the protocol."""
        for slot in list(self._pages):
            if slot not in taken:
                self.invalidate(slot)
                self.release(slot)

    def _withdraw(self, slot: int) -> None:
        """Nobody waits for what the slot has not computed."""
        pages = self._pages[slot]
        for block_hash in pages.hashes[pages.computed // self._block_size :]:
            if self._pending.get(block_hash) == slot:
                del self._pending[block_hash]

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_size)
