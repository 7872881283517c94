"""The echo engine's vectors and scores: made of the words alone, the same on every machine."""

import hashlib
import math
import struct
from collections.abc import Iterator

from broker.wire import Pooling, Task
from worker.engines.base import InvalidRequest

DIMENSIONS = 8
MOST_DIMENSIONS = 4096
Input = str | tuple[int, ...]


def rows(task: Task, pooling: Pooling) -> Iterator[bytes]:
    """A row for each input. Raises InvalidRequest."""
    if pooling.dimensions > MOST_DIMENSIONS:
        raise InvalidRequest(f"dimensions: at most {MOST_DIMENSIONS}")
    if task == "embed":
        for item in pooling.inputs:
            yield _pack(vector(_text(item), pooling.dimensions or DIMENSIONS))
        return
    for index, item in enumerate(pooling.inputs):
        yield _pack([overlap(pooling.queries[index % len(pooling.queries)], _text(item))])


def count_words(pooling: Pooling) -> int:
    """Words of all inputs and queries, standing in for tokens."""
    queries = sum(len(query.split()) for query in pooling.queries)
    if len(pooling.queries) == 1:
        queries *= len(pooling.inputs)
    return queries + sum(_length(item) for item in pooling.inputs)


def vector(text: str, dimensions: int) -> list[float]:
    """A unit vector made of a hash of the text."""
    digest = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(4 * dimensions)
    numbers = [word / 2**31 - 1 for word in struct.unpack(f"<{dimensions}I", digest)]
    norm = math.hypot(*numbers) or 1.0
    return [number / norm for number in numbers]


def overlap(query: str, document: str) -> float:
    """The words that both have, as a part of those that one of them has."""
    first, second = set(query.lower().split()), set(document.lower().split())
    return len(first & second) / max(1, len(first | second))


def _length(item: Input) -> int:
    return len(item.split()) if isinstance(item, str) else len(item)


def _text(item: Input) -> str:
    return item if isinstance(item, str) else " ".join(map(str, item))


def _pack(numbers: list[float]) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)
