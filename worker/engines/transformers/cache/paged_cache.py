"""Blocks for each sequence, as many as it has tokens; equal beginnings are shared, not copied.

The method is vLLM's (Kwon et al., 2023, https://arxiv.org/abs/2309.06180). A block is shared once
the step that fills it is queued, as the device computes steps in their order.

Layers with another window have blocks of their own (model/block_groups.py): those that a window has
passed are given back, and a prompt whose beginning is cached needs only those within its windows.
"""

from collections.abc import Collection
from collections.abc import Sequence as Many

from worker.engines.transformers.cache.block_hashes import first_parent, hash_blocks
from worker.engines.transformers.cache.block_pool import BlockPool
from worker.engines.transformers.cache.manager import Allocation, CacheRequest, Refusal
from worker.engines.transformers.cache.shared_prefixes import SharedPrefixTree
from worker.engines.transformers.model.step import SharedPrefix
from worker.engines.transformers.model.window import Window

_WORTH_WAITING = 64  # tokens that a prompt must gain by waiting for another one


class _Pages:
    """The blocks of one sequence."""

    def __init__(
        self, tables: list[list[int]], hashes: list[bytes], computed: int, group: int, hits: int
    ) -> None:
        self.tables = tables  # of each group of layers
        self.passed = [0] * len(tables)  # blocks that its window has passed: given back
        self.hits = hits  # blocks that others had computed
        self.hashes = hashes  # of whole blocks; the first `computed // block_size` are published
        self.computed = computed  # tokens
        self.tail: list[int] = []  # tokens of an answer, behind the last hash
        self.group = group
        self.prompt_length = 0  # tokens; 0: it shares no prefix with others while it decodes
        self.shared = group >= 0  # whether others may use its blocks


class PagedCache:
    """Keeps the KVCacheManager protocol."""

    def __init__(
        self,
        slots: int,
        blocks: int,
        block_size: int,
        windows: Many[Window] = (Window(),),
        *,
        prefix_tile_rows: int = 0,
    ) -> None:
        """`blocks` for all groups of layers together; `windows`: of each. `prefix_tile_rows`: see
        ModelRunner.
        """
        self._block_size = block_size
        self._windows = windows
        self._no_block = blocks  # the runner's spare one
        self._pool = BlockPool(blocks)
        self._free_slots = list(range(slots))
        self._pages: dict[int, _Pages] = {}  # by slot
        self._pending: dict[bytes, int] = {}  # hashes that a prompt in prefill will publish: slot
        self._prefixes = SharedPrefixTree(block_size, prefix_tile_rows)
        # Two groups without a window may not share the same: one's block can be gone alone.
        whole = [group for group, window in enumerate(windows) if not window.tokens]
        self._prefix_group = whole[0] if len(whole) == 1 and prefix_tile_rows else None
        self.prompt_tokens = 0
        self.cached_tokens = 0

    @property
    def free_tokens(self) -> int:
        """For how many tokens there is room."""
        return self._pool.unused // len(self._windows) * self._block_size

    def allocate(self, request: CacheRequest) -> Allocation | Refusal:
        """See the protocol. Blocks for the whole prompt and the token after it."""
        if not self._free_slots:
            return Refusal.NO_ROOM
        hits = self._count_hits(request)
        if self._worth_waiting(request, hits):
            return Refusal.WORTH_WAITING
        cached = hits * self._block_size
        count = self._blocks_for(len(request.ids) + 1)
        groups = len(self._windows)
        found = [self._found(request.hashes, group, hits) for group in range(groups)]
        revived = sum(self._pool.is_unused(block) for blocks in found for block in blocks)
        reserved = self._blocks_for(request.reserved_tokens)
        if self._pool.unused - revived < groups * (count - hits + reserved):
            return Refusal.NO_ROOM
        slot = self._free_slots.pop()
        for blocks in found:
            for block in blocks:
                self._pool.share(block)
        tables = [self._table(blocks, hits, count) for blocks in found]
        pages = _Pages(tables, list(request.hashes), cached, request.group, hits)
        pages.passed = [hits - len(blocks) for blocks in found]
        pages.prompt_length = len(request.ids) if request.reuse else 0
        self._pages[slot] = pages
        if request.group >= 0:
            for block_hash in request.hashes[hits:]:
                self._pending.setdefault(block_hash, slot)
        self.prompt_tokens += len(request.ids)
        self.cached_tokens += cached
        shared = max(0, sum(map(len, found)) - revived) // groups * self._block_size
        return Allocation(slot, cached, blocks=_flat(tables, 0), shared=shared)

    def _count_hits(self, request: CacheRequest) -> int:
        """How many blocks at the prompt's beginning need not be computed: of each group of layers
        those exist that are within its window then. The last token is always left out.
        """
        if not request.reuse or request.group < 0:
            return 0
        usable = request.hashes[: (len(request.ids) - 1) // self._block_size]
        windowed: list[int] = []
        for group, window in enumerate(self._windows):
            if window.tokens:
                windowed.append(group)
            else:
                usable = usable[: self._count_known(usable, group)]
        hits, last = len(usable), -1
        while hits != last:
            last = hits
            for group in windowed:
                hits = self._count_visible(usable[:hits], group)
        return hits

    def _count_known(self, hashes: list[bytes], group: int) -> int:
        """How many blocks of a group exist before the first that does not."""
        for number, block_hash in enumerate(hashes):
            if self._find(block_hash, group) is None:
                return number
        return len(hashes)

    def _count_visible(self, hashes: list[bytes], group: int) -> int:
        """The most blocks after which all exist that the next token sees of a group."""
        hits = number = len(hashes)
        while number > self._first_block(group, hits * self._block_size):
            number -= 1
            if self._find(hashes[number], group) is None:
                hits = number
        return hits

    def _find(self, block_hash: bytes, group: int) -> int | None:
        """The block that has the keys and values of a group's layers."""
        return self._pool.find(_group_hash(block_hash, group))

    def _found(self, hashes: list[bytes], group: int, hits: int) -> list[int]:
        """The cached blocks of a group that a sequence with so many hits uses."""
        blocks: list[int] = []
        for block_hash in hashes[self._first_block(group, hits * self._block_size) : hits]:
            block = self._find(block_hash, group)
            if block is not None:
                blocks.append(block)
        return blocks

    def _table(self, found: list[int], hits: int, count: int) -> list[int]:
        """A new sequence's blocks of a group."""
        return [self._no_block] * (hits - len(found)) + found + self._pool.take(count - hits)

    def _first_block(self, group: int, position: int) -> int:
        """The oldest block that the token at `position` needs."""
        return self._windows[group].first_visible(position) // self._block_size

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
        before = len(pages.tables[0])
        missing = self._blocks_for(length) - before
        if missing <= 0:
            return ()
        self._release_passed(pages, length - 1)
        if missing * len(self._windows) > self._pool.unused:
            return None
        for table in pages.tables:
            table.extend(self._pool.take(missing))
        return _flat(pages.tables, before)

    def _release_passed(self, pages: _Pages, position: int) -> None:
        """The next token to be computed is that at `position`, and sees no older blocks."""
        for group, table in enumerate(pages.tables):
            begin, end = pages.passed[group], self._first_block(group, position)
            if end > begin:
                self._pool.release(table[begin:end])
                table[begin:end] = [self._no_block] * (end - begin)
                pages.passed[group] = end

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
                self._publish(pages, index)
        if pages.computed - len(tokens) < pages.prompt_length <= pages.computed:
            self._share_prompt(slot, pages)
        self._release_passed(pages, pages.computed)

    def _share_prompt(self, slot: int, pages: _Pages) -> None:
        """The sequence decodes from now on: its prompt's whole blocks will not change."""
        if self._prefix_group is not None:
            table = pages.tables[self._prefix_group]
            self._prefixes.add(slot, table[: pages.prompt_length // self._block_size])

    def _publish(self, pages: _Pages, index: int) -> None:
        for group, table in enumerate(pages.tables):
            if table[index] != self._no_block:
                self._pool.publish(table[index], _group_hash(pages.hashes[index], group))

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
        self._prefixes.remove(slot)
        del self._pages[slot]
        for table, passed in zip(pages.tables, pages.passed, strict=True):
            self._pool.release(table[passed:])
        self._free_slots.append(slot)

    def invalidate(self, slot: int) -> None:
        """See the protocol. Blocks that others share were right before this sequence came."""
        pages = self._pages.get(slot)
        if pages is None:
            return
        pages.shared = False
        for table, passed in zip(pages.tables, pages.passed, strict=True):
            for block in table[max(passed, pages.hits) :]:
                self._pool.forget(block)
        for block_hash in pages.hashes[pages.hits : max(pages.passed)]:
            for group in range(len(self._windows)):
                given_back = self._find(block_hash, group)
                if given_back is not None:
                    self._pool.forget(given_back)

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

    @property
    def shared_prefixes(self) -> list[SharedPrefix]:
        """See the protocol."""
        return self._prefixes.prefixes

    def _withdraw(self, slot: int) -> None:
        """Nobody waits for what the slot has not computed."""
        pages = self._pages[slot]
        for block_hash in pages.hashes[pages.computed // self._block_size :]:
            if self._pending.get(block_hash) == slot:
                del self._pending[block_hash]

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_size)


def _group_hash(block_hash: bytes, group: int) -> bytes:
    """Names what the layers of a group have of these tokens."""
    return block_hash + bytes((group,)) if group else block_hash


def _flat(tables: list[list[int]], first: int) -> tuple[int, ...]:
    """The blocks from number `first` on, one group after the other."""
    return tuple(block for table in tables for block in table[first:])
