"""Runs a transformers model over a KV cache: prompts are computed in chunks, all running sequences
advance by one token per step. A sequence has a slot, which names it, and blocks of the cache or, on
a CPU, a row of it.

On a GPU a decoding step is a CUDA graph, captured once for each of a few batch sizes, so that a
step is one launch whatever the host's speed. A graph reads static tensors, filled by one small
copy. On a CPU exactly the rows at hand are computed.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worker.engines.transformers.model.attention import use_step
from worker.engines.transformers.model.cache_size import BLOCK_SIZE, CacheSize, blocks_for
from worker.engines.transformers.model.cuda_graphs import (
    MAX_CHUNKS,
    DecodeInputs,
    GraphRecorder,
    MixedSize,
    PrefixInputs,
    kept_rows,
)
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.last_layer import KeptTail
from worker.engines.transformers.model.packed_positions import PackedPositions, counts_tokens
from worker.engines.transformers.model.packing import (
    NEWEST,
    MixedInputs,
    chunk_table,
    pack_step,
)
from worker.engines.transformers.model.rope import RopeLimit
from worker.engines.transformers.model.step import (
    NO_ROWS,
    BlockRange,
    DecodeRows,
    PrefillChunk,
    SharedPrefix,
    Step,
    padded_length,
)
from worker.engines.transformers.model.step_graphs import MixedGraph, Progress, Run, StepGraphs

CACHES = ("key_cache", "value_cache")  # attributes of attention modules
_MODULE_STATE = (*CACHES, "block_group", "sees_all", "key_scale", "value_scale")
_Caches = tuple[torch.Tensor, torch.Tensor]


class LocalModelRunner:
    """The ModelRunner that computes in this process. Owns the keys and values, which the attention
    modules see as `key_cache` and `value_cache`: [blocks + 1, BLOCK_SIZE, kv heads, head size], or
    [slots + 1, context, kv heads, head size]. The last block or row is for padding. Layers
    of several groups share the memory of a block; see `block_groups`.
    """

    def __init__(
        self,
        model: Any,
        layout: KVCacheLayout,
        size: CacheSize,
        *,
        rope_limit: RopeLimit | None = None,
        capture_mode: str = "global",
    ) -> None:
        """`capture_mode`: see GraphRecorder."""
        self._model = model
        self.device: torch.device = model.device
        self.slots, self.context, self.blocks = size
        slots = size.slots
        self.windows = layout.block_groups.windows
        self.prefix_tile_rows = layout.prefix_tile_rows
        self.rope_limit = rope_limit
        self._tail: KeptTail | None = None
        self._attention_modules: list[Any] = []  # those that have their part of the cache
        self._packs_positions = any(counts_tokens(module) for module in layout.shapes)
        self._on_several_devices = len(set(layout.devices.values())) > 1
        # Per slot: initialised length; beyond it the memory may hold NaN.
        self._initialized = [0] * (slots + 1)
        # One slot more than sequences: padded rows of a graph compute there.
        self._spare_slot = slots
        self._newest_tokens = torch.zeros(slots + 1, dtype=torch.long, device=self.device)
        self._logits_slots = self._newest_tokens[:0]  # slots of the rows of the latest logits
        self._capture_mode = capture_mode
        self._graphs = StepGraphs(slots, size.context)
        self._inputs: DecodeInputs | None = None
        if self.device.type == "cuda" and not self._on_several_devices:
            self._inputs = DecodeInputs(slots, self.device)
        token_bytes = 2 * layout.dtype.itemsize * max(map(math.prod, layout.shapes.values()))
        self._prefixes = PrefixInputs(slots, self.device, token_bytes, self.prefix_tile_rows)
        self._block_tables: dict[torch.device, torch.Tensor] | None = None
        self._allocate(layout)

    @property
    def asynchronous(self) -> bool:
        """True on a GPU: steps are only queued, so the host may run ahead."""
        return self.device.type == "cuda"

    @property
    def cache_bytes(self) -> int:
        """See ModelRunner."""
        sizes: dict[int, int] = {}  # by address: groups share memory
        for module in self._attention_modules:
            for name in CACHES:
                cache = getattr(module, name)
                sizes[cache.data_ptr()] = cache.nbytes
        return sum(sizes.values())

    def _allocate(self, layout: KVCacheLayout) -> None:
        if self.blocks:
            self._block_tables = self._make_block_tables(set(layout.devices.values()))
        shared: dict[int, _Caches] = {}  # by place in a block
        try:
            for module, place in zip(layout.shapes, layout.block_groups.places, strict=True):
                caches = shared.get(place.layer) if self.blocks else None
                if caches is None:
                    caches = shared[place.layer] = self._allocate_caches(layout, module)
                self._attention_modules.append(module)  # first: `release` is to find what it has
                module.key_cache, module.value_cache = caches
                module.block_group = torch.tensor(place.group, device="cpu")
                module.sees_all = not layout.windows[module].tokens
                if module in layout.scales:
                    scales = torch.tensor(layout.scales[module], device=layout.devices[module])
                    module.key_scale, module.value_scale = scales
        except RuntimeError:  # out of memory
            self.release()
            raise

    def _allocate_caches(self, layout: KVCacheLayout, module: Any) -> _Caches:
        rows = (self.slots + 1, self.context)
        if self.blocks:
            rows = (self.blocks + 1, BLOCK_SIZE)
        shape, device = (*rows, *layout.shapes[module]), layout.devices[module]
        keys = torch.empty(shape, dtype=layout.dtype, device=device)
        return keys, torch.empty_like(keys)

    def _make_block_tables(self, devices: set[torch.device]) -> dict[torch.device, torch.Tensor]:
        """Every sequence has the spare block everywhere, until `set_blocks`."""
        shape = (len(self.windows), self.slots + 1, blocks_for(self.context))
        tables: dict[torch.device, torch.Tensor] = {}
        for device in devices | {self.device}:
            tables[device] = torch.full(shape, self.blocks, dtype=torch.int32, device=device)
        return tables

    def release(self) -> None:
        """Frees the graphs and the KV cache."""
        self.drop_graphs()
        self.compute_whole_tail()
        for module in self._attention_modules:
            for name in _MODULE_STATE:
                if hasattr(module, name):
                    delattr(module, name)
        self._attention_modules = []

    def drop_graphs(self) -> None:
        """Computes steps without graphs from now on."""
        self._graphs.clear()

    @property
    def keeps_tail(self) -> bool:
        """Whether the last layer is computed of the tokens alone whose logits are wanted."""
        return self._tail is not None

    def keep_tail(self, tail: KeptTail) -> None:
        """Has the last layer computed of the tokens alone whose logits are wanted, until `release`
        or `compute_whole_tail`.
        """
        self._tail = tail

    def compute_whole_tail(self) -> None:
        """Undoes `keep_tail`."""
        if self._tail is not None:
            self._tail.remove()
            self._tail = None

    def check(self) -> None:
        """A single process has nothing to check: its errors raise by themselves."""

    def copy_prefix(self, source: int, slot: int, tokens: int) -> None:
        """Copies the keys and values of the first `tokens` of slot `source` to `slot`."""
        for module in self._attention_modules:
            module.key_cache[slot, :tokens].copy_(module.key_cache[source, :tokens])
            module.value_cache[slot, :tokens].copy_(module.value_cache[source, :tokens])

    def set_blocks(self, ranges: list[BlockRange]) -> None:
        """The sequences have these blocks from the next step on. One upload for all of them."""
        groups: list[int] = []
        slots: list[int] = []
        numbers: list[int] = []
        blocks: list[int] = []
        for slot, start, added in ranges:
            count = len(added) // len(self.windows)
            for group in range(len(self.windows)):
                groups += [group] * count
                numbers += range(start, start + count)
            slots += [slot] * len(added)
            blocks += added
        entries = self._upload(groups + slots + numbers + blocks).view(4, -1)
        for device, table in (self._block_tables or {}).items():
            moved = entries.to(device, non_blocking=True)
            table[moved[0], moved[1], moved[2]] = moved[3].int()

    def share_prefixes(self, prefixes: list[SharedPrefix]) -> None:
        """See ModelRunner. Steps that are no graph read each sequence's keys by themselves."""
        if self._inputs is not None:
            self._prefixes.fill(prefixes)

    def _slot_mapping(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Where the keys and values of tokens go in the flattened cache; see Step."""
        if self._block_tables is None:
            return slots * self.context + positions
        blocks = self._block_tables[self.device][:, slots, positions // BLOCK_SIZE]
        return blocks.long() * BLOCK_SIZE + positions % BLOCK_SIZE

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
        rows: DecodeRows = NO_ROWS,
        *,
        batch_invariant: bool = False,
        every_token: bool = False,
        hidden: bool = False,
    ) -> torch.Tensor:
        """Computes chunks of prompts and, where the cache has blocks, the newest token of each of
        `rows` in the same pass. Returns logits [rows + chunks that end a prompt, vocabulary].

        `batch_invariant`: by the largest graph, whatever there is to compute; see `decode`.
        `every_token`, `hidden`: see ModelRunner; a graph computes the last ones' logits alone.
        """
        graph: MixedGraph | None = None
        if not every_token and not hidden:
            graph = self._graphs.mixed_graph(
                len(rows.slots) + sum(chunk.length for chunk in chunks),
                len(rows.slots),
                len(chunks),
                shares=self._prefixes.used,
                batch_invariant=batch_invariant,
            )
        if graph is None:
            return self._prefill_eagerly(
                chunks, tokens, ends_prompt, rows, every_token=every_token, hidden=hidden
            )
        size = graph.inputs.size
        unused = [PrefillChunk(self._spare_slot, 0, 0)] * (MAX_CHUNKS - len(chunks))
        packed = pack_step(
            rows,
            chunks,
            tokens,
            ends_prompt,
            size=size.tokens,
            logits=size.rows + MAX_CHUNKS,
            spare_slot=self._spare_slot,
        )
        graph.inputs.fill(packed, chunk_table([*chunks, *unused], len(rows.slots)))
        graph.graph.replay()
        count = len(rows.slots) + sum(ends_prompt)
        self._logits_slots = graph.inputs.logits_slots[:count]
        return graph.logits[:count]

    def _fill_rows(self, inputs: DecodeInputs, rows: DecodeRows, size: int) -> None:
        """The rows that are left over compute in the spare slot."""
        padding = size - len(rows.slots)
        inputs.fill(
            [*rows.slots, *[self._spare_slot] * padding], [*rows.positions, *[-1] * padding]
        )

    def _prefill_eagerly(
        self,
        chunks: list[PrefillChunk],
        tokens: list[list[int]],
        ends_prompt: list[bool],
        rows: DecodeRows,
        *,
        every_token: bool,
        hidden: bool,
    ) -> torch.Tensor:
        for chunk in chunks:
            self._initialized[chunk.slot] = chunk.end  # beyond are former sequences' leftovers
        used, ending = len(rows.slots), sum(ends_prompt)
        count = used + sum(chunk.length for chunk in chunks)
        packed = pack_step(
            rows,
            chunks,
            tokens,
            ends_prompt,
            size=count,
            logits=used + ending,
            spare_slot=self._spare_slot,
        )
        inputs = MixedInputs(
            MixedSize(count, used),
            self._upload(packed),
            self._upload(chunk_table(chunks, used)).int(),
        )
        self._logits_slots = inputs.logits_slots
        step = replace(self._step_of(inputs), chunks=tuple(chunks))
        if hidden:
            return self._hidden_states(step, self._token_ids(inputs), inputs.positions)
        if every_token:
            return self._forward(step, self._token_ids(inputs), inputs.positions, None)
        step = replace(step, kept=self._kept(inputs, max(1, used + ending)))
        return self._forward(step, self._token_ids(inputs), inputs.positions, inputs.logits_at)

    def _kept(self, inputs: MixedInputs, rows: int) -> torch.Tensor | None:
        """The tokens that the last layer is computed of: the wanted ones, and as many others as
        make it `rows`.
        """
        if self._tail is None or not 0 < rows < inputs.size.tokens:
            return None
        padding = inputs.logits_at.new_zeros(rows - len(inputs.logits_at))
        return torch.cat((inputs.logits_at, padding))

    def _step_of(self, inputs: MixedInputs, *, shares: bool = False) -> Step:
        """What attention has to know; on the device alone, so that a graph can hold it."""
        row_slots = inputs.slots[: inputs.size.rows]
        return Step(
            self._slot_mapping(inputs.slots, inputs.positions),
            row_slots.int(),
            inputs.row_lengths(),
            chunk_slots=inputs.chunk_slots,
            chunk_lengths=inputs.chunk_lengths,
            chunk_starts=inputs.chunk_starts,
            token_lengths=inputs.known_lengths,
            block_tables=self._block_tables,
            prefixes=self._prefixes.of_rows(row_slots) if shares else None,
        )

    def _token_ids(self, inputs: MixedInputs) -> torch.Tensor:
        newest = self._newest_tokens[inputs.slots]
        return torch.where(inputs.ids == NEWEST, newest, inputs.ids)

    # ---- decode

    def decode(
        self, slots: Sequence[int], positions: Sequence[int], *, batch_invariant: bool = False
    ) -> torch.Tensor:
        """Computes the newest token of each slot, at `positions`. Returns logits [rows,
        vocabulary], which the next call may overwrite.

        `batch_invariant`: constant batch shape, so results are bit-identical whatever the batch
        size: a GPU's libraries choose another order of summation for another number of rows.
        """
        count = len(slots)
        size = self._graphs.decode_size(count, batch_invariant=batch_invariant)
        if size is None or self._inputs is None:
            return self._decode_eagerly(slots, positions, batch_invariant=batch_invariant)
        self._fill_rows(self._inputs, DecodeRows(slots, positions), size)
        self._logits_slots = self._inputs.slot_indices[:count]
        graph, logits = self._graphs.decode_graph(
            size, positions, shares=self._prefixes.used, batch_invariant=batch_invariant
        )
        graph.replay()
        return logits[:count]

    def _decode_eagerly(
        self, slots: Sequence[int], positions: Sequence[int], *, batch_invariant: bool
    ) -> torch.Tensor:
        chunks = []
        for slot, position in zip(slots, positions, strict=True):
            chunks.append(PrefillChunk(slot, position, 1))
            if not self.blocks:
                self._zero_padding(slot, position + 1)
        slot_indices = self._logits_slots = self._upload(slots)
        device_positions = self._upload(positions)
        step = Step(
            self._slot_mapping(slot_indices, device_positions),
            slot_indices.int(),
            (device_positions + 1).int(),
            chunks=tuple(chunks),
            batch_invariant=batch_invariant,
            block_tables=self._block_tables,
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
        if logits_at is not None and step.kept is not None:  # which begin with them
            logits_to_keep = torch.arange(len(logits_at), device=self.device)
        elif logits_at is not None:
            # accelerate would move a tensor to the first device; the last one indexes with it.
            logits_to_keep = logits_at.tolist() if self._on_several_devices else logits_at
        packed = PackedPositions(positions) if self._packs_positions else None
        with use_step(step):
            output = self._model(
                input_ids=ids[None],
                position_ids=positions[None],
                past_key_values=packed,
                use_cache=False,
                logits_to_keep=logits_to_keep,
            )
        logits: torch.Tensor = output.logits
        return logits[0].to(self.device)

    def _hidden_states(
        self, step: Step, ids: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """What the output layer would make logits of, for all tokens."""
        packed = PackedPositions(positions) if self._packs_positions else None
        with use_step(step):
            output = self._model.base_model(
                input_ids=ids[None],
                position_ids=positions[None],
                past_key_values=packed,
                use_cache=False,
            )
        states: torch.Tensor = output.last_hidden_state
        return states[0].to(self.device)

    def _upload(self, values: Sequence[int] | npt.NDArray[np.int64]) -> torch.Tensor:
        """int64 on the device, without waiting for the copy."""
        if isinstance(values, np.ndarray):
            host = torch.from_numpy(values)
            host = host.pin_memory() if self.asynchronous else host
        else:
            host = torch.tensor(values, dtype=torch.long, pin_memory=self.asynchronous)
        return host.to(self.device, non_blocking=True)

    # ---- CUDA graphs

    def capture_graphs(self, progress: Progress) -> None:
        """Records steps, unless the model's need the host. Raises RuntimeError."""
        if self._inputs is None or self._model.dtype == torch.float32:
            return  # float32 takes the SDPA path, which loops on the host
        if self.rope_limit is not None and not self.rope_limit.switched:
            return  # dynamic frequencies depend on lengths that the host reads
        recorder = GraphRecorder(self.device, self._capture_mode)
        self._graphs.capture(self, recorder, progress, shares=self.prefix_tile_rows > 0)

    def decode_step(self, size: int, *, longest: int = 0, shares: bool = False) -> Run:
        """See Steps."""
        inputs = self._inputs
        if inputs is None:
            raise RuntimeError("only a GPU records steps")
        self._fill_rows(inputs, NO_ROWS, size)

        def run() -> torch.Tensor:
            slot_indices, positions = inputs.slot_indices[:size], inputs.positions[:size]
            step = Step(
                self._slot_mapping(slot_indices, positions),
                inputs.slots[:size],
                inputs.lengths[:size],
                block_tables=self._block_tables,
                longest=longest,
                prefixes=self._prefixes.of_rows(slot_indices) if shares else None,
            )
            return self._forward(step, self._newest_tokens[slot_indices], positions, None)

        return run

    def mixed_step(self, size: MixedSize, *, shares: bool = False) -> tuple[Run, MixedInputs]:
        """See Steps."""
        unused = [PrefillChunk(self._spare_slot, 0, 0)] * MAX_CHUNKS
        logits = size.rows + MAX_CHUNKS
        packed = pack_step(
            NO_ROWS, [], [], [], size=size.tokens, logits=logits, spare_slot=self._spare_slot
        )
        inputs = MixedInputs(size, self._upload(packed), self._upload(chunk_table(unused, 0)).int())

        def run() -> torch.Tensor:
            step = self._step_of(inputs, shares=shares)
            step = replace(step, kept=self._kept(inputs, kept_rows(size)))
            return self._forward(step, self._token_ids(inputs), inputs.positions, inputs.logits_at)

        return run, inputs
