"""What the scheduler asks of the bookkeeping of the KV cache.

`PagedCache` (paged_cache.py) gives a sequence blocks as it grows, for a GPU; `SlotCache`
(slot_cache.py) gives each sequence one contiguous row, which a CPU reads fastest. Both are pure
bookkeeping: the memory itself belongs to the model runner.
"""

import enum
from collections.abc import Collection
from typing import NamedTuple, Protocol

from worker.engines.transformers.model.step import SharedPrefix


class Refusal(enum.Enum):
    """Why a prompt gets no memory now."""

    NO_ROOM = "no room"  # until another sequence ends
    WORTH_WAITING = "worth waiting"  # its beginning is being computed for another sequence


class CacheRequest(NamedTuple):
    """A prompt that needs memory."""

    ids: list[int]
    hashes: list[bytes]  # of its whole blocks, see block_hashes.py; unused by slots
    reuse: bool = True  # False: nothing counts as cached, as it may have been rounded differently
    group: int = 0  # only prompts of one group share keys; a negative group shares none
    reserved_tokens: int = 0  # that must stay free for sequences which run already


class Allocation(NamedTuple):
    """Where a sequence is computed, and how much of its prompt is cached."""

    slot: int
    cached: int  # tokens at the prompt's beginning whose keys and values exist
    source: int | None = None  # slots: another one to copy them from
    blocks: tuple[int, ...] = ()  # pages: the sequence's blocks of each group, cached ones first
    shared: int = 0  # pages: tokens in blocks that other sequences use, too


class KVCacheManager(Protocol):
    """The KV cache of up to `slots` sequences. Used by one thread."""

    prompt_tokens: int  # of all allocations
    cached_tokens: int  # of them, not computed again

    def allocate(self, request: CacheRequest) -> Allocation | Refusal:
        """Memory for a prompt, of which at least the last token is always computed."""

    def grow(self, slot: int, length: int) -> tuple[int, ...] | None:
        """Makes room for `length` tokens in all, the last of which is computed next: blocks that it
        does not see may be given back. Returns new blocks, equally many of each group of layers;
        None if there is no room.
        """

    def extend(self, slot: int, tokens: list[int]) -> None:
        """The step computes these next tokens of the slot: others may share them from now on."""

    def release(self, slot: int) -> None:
        """The slot's sequence has left; its tokens stay cached. May be called again."""

    def invalidate(self, slot: int) -> None:
        """What the slot has may be wrong, so no other prompt uses it."""

    def clear(self) -> None:
        """Nothing is cached any more; allocations stay. For memory in an unknown state."""

    @property
    def shared_prefixes(self) -> list[SharedPrefix]:
        """Pages: what sequences share that have computed their prompts, but for those that reuse
        nothing. The same object as before if nothing has changed.
        """

    def release_all_but(self, taken: Collection[int]) -> None:
        """Frees slots that an allocation broken off by an error has left without a sequence."""
