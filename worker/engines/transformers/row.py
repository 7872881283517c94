"""A sequence as the scheduler computes it: where it is, and how far."""

from worker.engines.transformers.cache.block_hashes import first_parent, hash_blocks
from worker.engines.transformers.cache.manager import CacheRequest
from worker.engines.transformers.model.cache_size import BLOCK_SIZE
from worker.engines.transformers.model.rope import RopeLimit
from worker.engines.transformers.sequence import Sequence


class Row:
    """Made when a sequence is added. It has a slot from its admission until it leaves, or until it
    is preempted; then its tokens so far are a prompt that is computed again.
    """

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.slot = -1  # none
        self.prompt_length = len(sequence.prompt)
        self.prefill_ids = sequence.ids
        self.shared = 0  # tokens whose memory others were using, too, when it got it
        self.keeps_place = False  # it gave its memory back only to be computed again at once
        self.prefilled = 0  # tokens of `prefill_ids` whose keys and values are in the cache
        self.capacity = 0  # tokens that there is room for
        self.max_tokens = sequence.max_tokens  # that may follow `prefill_ids`
        self.sampled = 0  # tokens sampled since, known to the host or not
        self.known_ids: list[int] = []  # those of them that the host knows
        self._hashes: list[bytes] | None = sequence.block_hashes

    @property
    def position(self) -> int:
        """Where its newest token is computed."""
        return len(self.prefill_ids) + self.sampled - 1

    @property
    def needs_token(self) -> bool:
        """Whether another token may be sampled for it."""
        return self.sampled < self.max_tokens and not self.sequence.finished

    @property
    def all_known(self) -> bool:
        """Whether the host knows every token that was sampled."""
        return len(self.known_ids) == self.sampled

    @property
    def awaits_tokens(self) -> bool:
        """Whether its grammar must know a token that the host does not know yet."""
        if self.sequence.guide is None or self.sequence.finished:
            return False
        return not self.all_known

    @property
    def answer(self) -> list[int]:
        """The tokens of the answer among `prefill_ids`."""
        return self.prefill_ids[self.prompt_length :]

    @property
    def answer_length(self) -> int:
        """How many tokens the answer has so far."""
        return len(self.prefill_ids) + self.sampled - self.prompt_length

    @property
    def reproducible(self) -> bool:
        """Whether its request named a seed, and so wants the same text in any batch."""
        return self.sequence.sampling.reproducible

    @property
    def wants_logits(self) -> bool:
        """Whether its prompt's own logits are needed, of which nothing is cached."""
        return self.sequence.prompt_logprobs is not None

    @property
    def wants_hidden(self) -> bool:
        """Whether its prompt's hidden states are needed, of which nothing is cached either."""
        return self.sequence.pooled is not None

    def prefill_again(self) -> None:
        """All its tokens, which the host must know, are a prompt from now on."""
        self.prefill_ids = [*self.prefill_ids, *self.known_ids]
        self.max_tokens -= self.sampled
        self.slot, self.prefilled, self.capacity = -1, 0, 0
        self.sampled, self.known_ids = 0, []
        self._hashes = None

    def cache_request(self, rope_limit: RopeLimit | None, reserved_tokens: int) -> CacheRequest:
        """What the KV cache must know to give it memory."""
        group = length_group(rope_limit, len(self.prefill_ids))
        if self._hashes is None:
            self._hashes = hash_blocks(self.prefill_ids, BLOCK_SIZE, first_parent(group))
        return CacheRequest(
            self.prefill_ids,
            self._hashes,
            reuse=not (self.reproducible or self.wants_logits or self.wants_hidden),
            group=group,
            reserved_tokens=reserved_tokens,
        )


def length_group(rope_limit: RopeLimit | None, length: int) -> int:
    """See CacheRequest: keys may depend on the length of their prompt."""
    if rope_limit is None:
        return 0
    return rope_limit.group(length)
