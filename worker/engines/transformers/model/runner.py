"""Runs a transformers model over a KV cache of a fixed number of slots: prompts are computed in
chunks, all running sequences advance by one token per step.

On a GPU a decoding step is a CUDA graph, captured once for each of a few batch sizes, so that a
step is one launch whatever the host's speed. A graph reads static tensors, filled by one small
copy. On a CPU exactly the rows at hand are computed.
"""

import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch

from worker.engines.transformers.model.attention import use_step
from worker.engines.transformers.model.cuda_graphs import (
    GRAPH_BATCH_SIZES,
    GRAPH_PREFILL_TOKENS,
    MAX_CHUNKS,
    DecodeGraph,
    DecodeInputs,
    GraphRecorder,
    PrefillGraph,
    graph_size,
)
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.rope import RopeLimit
from worker.engines.transformers.model.step import PrefillChunk, Step, padded_length

Progress = Callable[[str], None]


class LocalModelRunner:
    """The ModelRunner that computes in this process. Owns the keys and values of `slots` sequences
    of up to `context` tokens, which the attention modules see as `key_cache` and `value_cache`.
    """

    def __init__(
        self,
        model: Any,
        layout: KVCacheLayout,
        slots: int,
        context: int,
        *,
        rope_limit: RopeLimit | None = None,
        capture_mode: str = "global",
    ) -> None:
        """`capture_mode`: see GraphRecorder."""
        self._model = model
        self.device: torch.device = model.device
        self.slots, self.context = slots, context
        self.rope_limit = rope_limit
        self._attention_modules: list[Any] = []  # those that have their part of the cache
        self._on_several_devices = len(set(layout.devices.values())) > 1
        # Per slot: initialised length; beyond it the memory may hold NaN.
        self._initialized = [0] * (slots + 1)
        # One slot more than sequences: padded rows of a graph compute there.
        self._spare_slot = slots
        self._newest_tokens = torch.zeros(slots + 1, dtype=torch.long, device=self.device)
        self._logits_slots = self._newest_tokens[:0]  # slots of the rows of the latest logits
        self._capture_mode = capture_mode
        self._decode_graphs: dict[int, DecodeGraph] = {}
        self._prefill_graphs: dict[int, PrefillGraph] = {}
        self._inputs: DecodeInputs | None = None
        if self.device.type == "cuda" and not self._on_several_devices:
            self._inputs = DecodeInputs(slots, context, self.device)
        self._allocate(layout)

    @property
    def asynchronous(self) -> bool:
        """True on a GPU: steps are only queued, so the host may run ahead."""
        return self.device.type == "cuda"

    def _allocate(self, layout: KVCacheLayout) -> None:
        dtype = self._model.dtype
        try:
            for module, (kv_heads, head_size) in layout.shapes.items():
                shape = (self.slots + 1, self.context, kv_heads, head_size)
                device = layout.devices[module]
                keys = torch.empty(shape, dtype=dtype, device=device)
                values = torch.empty(shape, dtype=dtype, device=device)
                module.key_cache, module.value_cache = keys, values
                self._attention_modules.append(module)
        except RuntimeError:  # out of memory
            self.release()
            raise

    def release(self) -> None:
        """Frees the graphs and the KV cache."""
        self.drop_graphs()
        for module in self._attention_modules:
            del module.key_cache, module.value_cache
        self._attention_modules = []

    def drop_graphs(self) -> None:
        """Computes steps without graphs from now on."""
        self._decode_graphs.clear()
        self._prefill_graphs.clear()

    def check(self) -> None:
        """A single process has nothing to check: its errors raise by themselves."""

    def copy_prefix(self, source: int, slot: int, tokens: int) -> None:
        """Copies the keys and values of the first `tokens` of slot `source` to `slot`."""
        for module in self._attention_modules:
            module.key_cache[slot, :tokens].copy_(module.key_cache[source, :tokens])
            module.value_cache[slot, :tokens].copy_(module.value_cache[source, :tokens])

    def feed(self, tokens: torch.Tensor) -> None:
        """Takes the tokens sampled from the latest logits [rows], perhaps still being computed:
        decoding continues from them.
        """
        self._newest_tokens.index_copy_(0, self._logits_slots, tokens)

    # ---- prefill

    def prefill(
        self,
        chunks: list[PrefillChunk],
        tokens: list[list[int]],
        ends_prompt: list[bool],
        *,
        batch_invariant: bool = False,
    ) -> torch.Tensor:
        """Computes chunks of prompts. Returns logits [chunks that end a prompt, vocabulary].

        `batch_invariant`: by the largest graph, whatever there is to compute; see `decode`.
        """
        count = sum(chunk.length for chunk in chunks)
        size = graph_size(self._prefill_graphs, count, batch_invariant=batch_invariant)
        if size is None or len(chunks) > MAX_CHUNKS:
            return self._prefill_eagerly(chunks, tokens, ends_prompt)
        graph, ending = self._prefill_graphs[size], sum(ends_prompt)
        unused = [PrefillChunk(self._spare_slot, 0, 0)] * (MAX_CHUNKS - len(chunks))
        packed = self._pack(
            chunks, tokens, ends_prompt, padding=size - count, logits_padding=MAX_CHUNKS - ending
        )
        graph.fill(packed, chunk_table([*chunks, *unused]))
        self._logits_slots = graph.logits_slots[:ending]
        graph.graph.replay()
        return graph.logits[:ending]

    def _prefill_eagerly(
        self, chunks: list[PrefillChunk], tokens: list[list[int]], ends_prompt: list[bool]
    ) -> torch.Tensor:
        for chunk in chunks:
            self._initialized[chunk.slot] = chunk.end  # beyond are former sequences' leftovers
        count, ending = sum(chunk.length for chunk in chunks), sum(ends_prompt)
        packed = self._upload(self._pack(chunks, tokens, ends_prompt))
        ids, slot_mapping, positions, known_lengths, last_tokens, self._logits_slots = packed.split(
            [count, count, count, count, ending, ending]
        )
        table = self._upload(chunk_table(chunks)).int()
        slots, lengths, starts = table.split([len(chunks), len(chunks), len(chunks) + 1])
        step = Step(
            slot_mapping,
            slots,
            lengths,
            chunks=tuple(chunks),
            chunk_starts=starts,
            max_chunk_length=max(chunk.length for chunk in chunks),
            prefill_lengths=known_lengths,
        )
        return self._forward(step, ids, positions, last_tokens)

    def _pack(
        self,
        chunks: list[PrefillChunk],
        tokens: list[list[int]],
        ends_prompt: list[bool],
        *,
        padding: int = 0,
        logits_padding: int = 0,
    ) -> list[int]:
        """The int64 inputs of a prefill, concatenated for one upload. Per token: its id, slot
        mapping, position and `known_length`. Per chunk that ends a prompt: the index of its last
        token, then its slot. Padding computes in the spare slot.
        """
        ids: list[int] = []
        slot_mapping: list[int] = []
        positions: list[int] = []
        known_lengths: list[int] = []
        last_tokens: list[int] = []
        logits_slots: list[int] = []
        for chunk, chunk_tokens, ends in zip(chunks, tokens, ends_prompt, strict=True):
            slot_start = chunk.slot * self.context
            ids += chunk_tokens
            slot_mapping += range(slot_start + chunk.start, slot_start + chunk.end)
            positions += range(chunk.start, chunk.end)
            known_lengths += [chunk.known_length] * chunk.length
            if ends:
                last_tokens.append(len(ids) - 1)
                logits_slots.append(chunk.slot)
        zeros = [0] * padding
        ids += zeros
        slot_mapping += [self._spare_slot * self.context] * padding
        positions += zeros
        known_lengths += zeros
        last_tokens += [0] * logits_padding
        logits_slots += [self._spare_slot] * logits_padding
        return ids + slot_mapping + positions + known_lengths + last_tokens + logits_slots

    # ---- decode

    def decode(
        self, slots: list[int], positions: list[int], *, batch_invariant: bool = False
    ) -> torch.Tensor:
        """Computes the newest token of each slot, at `positions`. Returns logits [rows,
        vocabulary], which the next call may overwrite.

        `batch_invariant`: constant batch shape, so results are bit-identical whatever the batch
        size: a GPU's libraries choose another order of summation for another number of rows.
        """
        count = len(slots)
        size = graph_size(self._decode_graphs, count, batch_invariant=batch_invariant)
        if size is None or self._inputs is None:
            return self._decode_eagerly(slots, positions, batch_invariant=batch_invariant)
        padding = size - count
        self._inputs.fill(slots + [self._spare_slot] * padding, positions + [0] * padding)
        self._logits_slots = self._inputs.slot_indices[:count]
        graph, logits = self._decode_graphs[size]
        graph.replay()
        return logits[:count]

    def _decode_eagerly(
        self, slots: list[int], positions: list[int], *, batch_invariant: bool
    ) -> torch.Tensor:
        chunks = []
        for slot, position in zip(slots, positions, strict=True):
            chunks.append(PrefillChunk(slot, position, 1))
            self._zero_padding(slot, position + 1)
        slot_indices = self._logits_slots = self._upload(slots)
        device_positions = self._upload(positions)
        step = Step(
            slot_indices * self.context + device_positions,
            slot_indices.int(),
            (device_positions + 1).int(),
            chunks=tuple(chunks),
            batch_invariant=batch_invariant,
        )
        return self._forward(step, self._newest_tokens[slot_indices], device_positions, None)

    def _zero_padding(self, slot: int, length: int) -> None:
        """Eager decoding reads somewhat beyond a slot's `length`, masked. Masking does not stop NaN
        in the values, so that padding is zeroed first.
        """
        end, initialized = padded_length(length, self.context), self._initialized[slot]
        if initialized >= end:
            return
        for module in self._attention_modules:
            module.key_cache[slot, initialized:end] = 0
            module.value_cache[slot, initialized:end] = 0
        self._initialized[slot] = end

    def _forward(
        self,
        step: Step,
        ids: torch.Tensor,
        positions: torch.Tensor,
        logits_at: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits [rows, vocabulary] after the tokens `logits_at`; None: after all tokens."""
        logits_to_keep: torch.Tensor | list[int] | int = 0  # transformers: 0 keeps all
        if logits_at is not None:
            # accelerate would move a tensor to the first device; the last one indexes with it.
            logits_to_keep = logits_at.tolist() if self._on_several_devices else logits_at
        with use_step(step):
            output = self._model(
                input_ids=ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=logits_to_keep,
            )
        logits: torch.Tensor = output.logits
        return logits[0].to(self.device)

    def _upload(self, values: list[int]) -> torch.Tensor:
        """int64 on the device, without waiting for the copy."""
        host = torch.tensor(values, dtype=torch.long, pin_memory=self.asynchronous)
        return host.to(self.device, non_blocking=True)

    # ---- CUDA graphs

    def time_prefill(self, tokens: int) -> float:
        """Seconds that a prefill of so many tokens takes, measured in the spare slot."""
        torch.cuda.synchronize(self.device)
        began = time.perf_counter()
        self.prefill([PrefillChunk(self._spare_slot, 0, tokens)], [[0] * tokens], [True])
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def capture_graphs(self, progress: Progress) -> None:
        """Records a graph per batch size, unless the model's steps need the host. The largest come
        first: smaller ones reuse their memory. Raises RuntimeError.
        """
        if self._inputs is None or self._model.dtype == torch.float32:
            return  # float32 takes the SDPA path, which loops on the host
        if self.rope_limit is not None and not self.rope_limit.switched:
            return  # dynamic frequencies depend on lengths that the host reads
        recorder = GraphRecorder(self.device, self._capture_mode)
        sizes = [size for size in GRAPH_BATCH_SIZES if size < self.slots] + [self.slots]
        decode_graphs: dict[int, DecodeGraph] = {}
        for number, size in enumerate(reversed(sizes), 1):
            progress(f"capturing the graph of a batch of {size} ({number} of {len(sizes)})")
            decode_graphs[size] = self._record_decode(recorder, self._inputs, size)
        self._decode_graphs = dict(sorted(decode_graphs.items()))
        for size in GRAPH_PREFILL_TOKENS:
            progress(f"capturing the graph of a prefill of {size} tokens")
            self._prefill_graphs[size] = self._record_prefill(recorder, size)

    def _record_decode(
        self, recorder: GraphRecorder, inputs: DecodeInputs, size: int
    ) -> DecodeGraph:
        inputs.fill([self._spare_slot] * size, [0] * size)
        step = Step(inputs.slot_mapping[:size], inputs.slots[:size], inputs.lengths[:size])

        def run() -> torch.Tensor:
            ids = self._newest_tokens[inputs.slot_indices[:size]]
            return self._forward(step, ids, inputs.positions[:size], None)

        return DecodeGraph(*recorder.record(run))

    def _record_prefill(self, recorder: GraphRecorder, size: int) -> PrefillGraph:
        packed = torch.zeros(4 * size + 2 * MAX_CHUNKS, dtype=torch.long, device=self.device)
        ids, slot_mapping, positions, known_lengths, last_tokens, logits_slots = packed.split(
            [size, size, size, size, MAX_CHUNKS, MAX_CHUNKS]
        )
        table = torch.zeros(3 * MAX_CHUNKS + 1, dtype=torch.int32, device=self.device)
        slots, lengths, starts = table.split([MAX_CHUNKS, MAX_CHUNKS, MAX_CHUNKS + 1])
        slot_mapping.fill_(self._spare_slot * self.context)
        slots.fill_(self._spare_slot)
        step = Step(
            slot_mapping,
            slots,
            lengths,
            chunk_starts=starts,
            max_chunk_length=size,
            prefill_lengths=known_lengths,
        )
        graph, logits = recorder.record(lambda: self._forward(step, ids, positions, last_tokens))
        return PrefillGraph(graph, logits, packed, table, logits_slots)


def chunk_table(chunks: list[PrefillChunk]) -> list[int]:
    """The int32 inputs of a prefill: per chunk its slot, then its end, then its offset among the
    step's tokens, with the total at the end.
    """
    slots = [chunk.slot for chunk in chunks]
    ends = [chunk.end for chunk in chunks]
    starts = accumulate((chunk.length for chunk in chunks), initial=0)
    return [*slots, *ends, *starts]
