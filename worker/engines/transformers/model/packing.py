"""A prefill's inputs as lists, concatenated so that one upload carries them."""

from itertools import accumulate

from worker.engines.transformers.model.step import PrefillChunk


def pack_chunks(
    chunks: list[PrefillChunk],
    tokens: list[list[int]],
    ends_prompt: list[bool],
    spare_slot: int,
    *,
    padding: int = 0,
    logits_padding: int = 0,
) -> list[int]:
    """The int64 inputs of a prefill. Per token: its id, slot, position and `known_length`. Per
    chunk that ends a prompt: the index of its last token, then its slot. Padding computes in the
    spare slot.
    """
    ids: list[int] = []
    slots: list[int] = []
    positions: list[int] = []
    known_lengths: list[int] = []
    last_tokens: list[int] = []
    logits_slots: list[int] = []
    for chunk, chunk_tokens, ends in zip(chunks, tokens, ends_prompt, strict=True):
        ids += chunk_tokens
        slots += [chunk.slot] * chunk.length
        positions += range(chunk.start, chunk.end)
        known_lengths += [chunk.known_length] * chunk.length
        if ends:
            last_tokens.append(len(ids) - 1)
            logits_slots.append(chunk.slot)
    zeros = [0] * padding
    ids += zeros
    slots += [spare_slot] * padding
    positions += zeros
    known_lengths += zeros
    last_tokens += [0] * logits_padding
    logits_slots += [spare_slot] * logits_padding
    return ids + slots + positions + known_lengths + last_tokens + logits_slots


def chunk_table(chunks: list[PrefillChunk]) -> list[int]:
    """The int32 inputs of a prefill: per chunk its slot, then its end, then its offset among the
    chunks' tokens, with the total at the end.
    """
    slots = [chunk.slot for chunk in chunks]
    ends = [chunk.end for chunk in chunks]
    starts = accumulate((chunk.length for chunk in chunks), initial=0)
    return [*slots, *ends, *starts]
