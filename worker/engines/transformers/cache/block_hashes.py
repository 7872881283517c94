"""Names for blocks of tokens: a block's hash covers all tokens before it, too, so that equal hashes
mean equal keys and values.

A chain as in vLLM's automatic prefix caching. Anybody may choose prompts, so the hash is a
cryptographic one: a collision would show one user's keys to another.
"""

import hashlib
from array import array

_DIGEST_BYTES = 16


def first_parent(group: int) -> bytes:
    """Stands before the first block; see `CacheRequest.group`."""
    return str(group).encode()


def hash_blocks(tokens: list[int], block_size: int, parent: bytes) -> list[bytes]:
    """One hash per whole block of `tokens`. `parent`: the hash of the block before them."""
    hashes: list[bytes] = []
    packed = array("q", tokens).tobytes()
    block_bytes = block_size * 8
    for end in range(block_bytes, len(packed) + 1, block_bytes):
        block = packed[end - block_bytes : end]
        parent = hashlib.blake2b(parent + block, digest_size=_DIGEST_BYTES).digest()
        hashes.append(parent)
    return hashes
