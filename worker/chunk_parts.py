"""A chunk in parts that fit into a frame: a prompt's tokens and logprobs may be many. Pure."""

from collections.abc import Iterator

import msgspec

from worker.engines.base import Chunk

MAX_TEXT = 100_000  # characters of a part
MAX_IDS = 16_384
ROWS_BYTES = 128 * 1024  # a longer vector has a part of its own
MAX_LOGPROBS = 8192  # those of the likeliest tokens included; some 40 bytes each


def parts(chunk: Chunk) -> Iterator[Chunk]:
    """The chunk, or several in its order; the first has its counts, the last its finish."""
    if not _is_large(chunk):
        yield chunk
        return
    rest = msgspec.structs.replace(chunk, text="", ids=(), prompt_logprobs=(), finish=None)
    for start, end in _logprob_ranges(chunk):
        yield msgspec.structs.replace(rest, prompt_logprobs=chunk.prompt_logprobs[start:end])
        rest = Chunk()
    for start in range(0, len(chunk.ids), MAX_IDS):
        yield msgspec.structs.replace(rest, ids=chunk.ids[start : start + MAX_IDS])
        rest = Chunk()
    for start in range(0, len(chunk.text), MAX_TEXT):
        yield msgspec.structs.replace(rest, text=chunk.text[start : start + MAX_TEXT])
        rest = Chunk()
    yield msgspec.structs.replace(rest, finish=chunk.finish)


def row_parts(rows: tuple[bytes, ...]) -> Iterator[tuple[bytes, ...]]:
    """The rows in parts of at most ROWS_BYTES."""
    part: list[bytes] = []
    size = 0
    for row in rows:
        if part and size + len(row) > ROWS_BYTES:
            yield tuple(part)
            part, size = [], 0
        part.append(row)
        size += len(row)
    if part:
        yield tuple(part)


def _is_large(chunk: Chunk) -> bool:
    return bool(chunk.prompt_logprobs) or len(chunk.ids) > MAX_IDS or len(chunk.text) > MAX_TEXT


def _logprob_ranges(chunk: Chunk) -> Iterator[tuple[int, int]]:
    """From where to where each part of the prompt's logprobs goes."""
    start, weight = 0, 0
    for index, entry in enumerate(chunk.prompt_logprobs):
        size = 1 + len(entry.top)
        if weight and weight + size > MAX_LOGPROBS:
            yield start, index
            start, weight = index, 0
        weight += size
    if weight:
        yield start, len(chunk.prompt_logprobs)
