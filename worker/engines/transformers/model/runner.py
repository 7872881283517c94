"""Runs a transformers model over a KV cache: prompts are computed in chunks, all running sequences
advance by one token per step. A sequence has a slot, which names it, and blocks of the cache or, on
a CPU, a row of it.

On a GPU a decoding step is a CUDA graph, captured once for each of a few batch sizes, so that a
step is one launch whatever the host's speed. A graph reads static tensors, filled by one small
copy. On a CPU exactly the rows at hand are computed.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog
import torch

from worker.engines.transformers.model.attention import use_step
from worker.engines.transformers.model.cache_size import BLOCK_SIZE, CacheSize, blocks_for
from worker.engines.transformers.model.cuda_graphs import (
    GRAPH_BATCH_SIZES,
    INVARIANT_ROWS,
    MAX_CHUNKS,
    DecodeGraph,
    DecodeInputs,
    GraphRecorder,
    MixedSize,
    PrefillGraph,
    PrefixInputs,
    graph_size,
    may_share,
    mixed_sizes,
    sizes_beside,
)
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.packed_positions import PackedPositions, counts_tokens
from worker.engines.transformers.model.packing import chunk_table, pack_chunks
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
from worker.errors import one_line

log = structlog.get_logger(__name__)

Progress = Callable[[str], None]
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
        self._decode_graphs: dict[int, DecodeGraph] = {}
        self._prefill_graphs: dict[MixedSize, PrefillGraph] = {}
        # The same again, for some sizes, with shared prefixes read once.
        self._sharing_decode_graphs: dict[int, DecodeGraph] = {}
        self._sharing_prefill_graphs: dict[MixedSize, PrefillGraph] = {}
        self._inputs: DecodeInputs | None = None
        self._graph_logits: torch.Tensor | None = None  # of whichever graph was replayed last
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
        for module in self._attention_modules:
            for name in _MODULE_STATE:
                if hasattr(module, name):
                    delattr(module, name)
        self._attention_modules = []

    def drop_graphs(self) -> None:
        """Computes steps without graphs from now on."""
        for graphs in (self._decode_graphs, self._sharing_decode_graphs):
            graphs.clear()
        for mixed_graphs in (self._prefill_graphs, self._sharing_prefill_graphs):
            mixed_graphs.clear()
        self._graph_logits = None

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
        size: MixedSize | None = None
        if not every_token and not hidden:
            size = self._mixed_size(chunks, len(rows.slots), batch_invariant=batch_invariant)
        if size is None or self._inputs is None:
            return self._prefill_eagerly(
                chunks, tokens, ends_prompt, rows, every_token=every_token, hidden=hidden
            )
        graph, ending = self._prefill_graphs[size], sum(ends_prompt)
        if self._prefixes.used and not batch_invariant:
            graph = self._sharing_prefill_graphs.get(size, graph)
        unused = [PrefillChunk(self._spare_slot, 0, 0)] * (MAX_CHUNKS - len(chunks))
        packed = pack_chunks(
            chunks,
            tokens,
            ends_prompt,
            self._spare_slot,
            padding=size.tokens - sum(chunk.length for chunk in chunks),
            logits_padding=MAX_CHUNKS - ending,
        )
        graph.fill(packed, chunk_table([*chunks, *unused]))
        self._fill_rows(self._inputs, rows, size.rows)
        graph.graph.replay()
        slots, logits = graph.logits_slots[:ending], graph.logits[size.rows : size.rows + ending]
        if rows.slots:
            count = len(rows.slots)
            slots = torch.cat((self._inputs.slot_indices[:count], slots))
            logits = torch.cat((graph.logits[:count], logits))
        self._logits_slots = slots
        return logits

    def _mixed_size(
        self, chunks: list[PrefillChunk], rows: int, *, batch_invariant: bool
    ) -> MixedSize | None:
        """Of the graph to take."""
        if len(chunks) > MAX_CHUNKS:
            return None
        beside = sizes_beside(rows, self._prefill_graphs)
        tokens = graph_size(
            [size.tokens for size in beside],
            sum(chunk.length for chunk in chunks),
            batch_invariant=batch_invariant,
        )
        if tokens is None:
            return None
        return MixedSize(tokens, beside[0].rows)

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
        count, ending = sum(chunk.length for chunk in chunks), sum(ends_prompt)
        packed = self._upload(pack_chunks(chunks, tokens, ends_prompt, self._spare_slot))
        ids, token_slots, positions, known_lengths, last_tokens, logits_slots = packed.split(
            [count, count, count, count, ending, ending]
        )
        table = self._upload(chunk_table(chunks)).int()
        slots, lengths, starts = table.split([len(chunks), len(chunks), len(chunks) + 1])
        row_slots, row_positions = self._upload([*rows.slots, *rows.positions]).view(2, -1)
        step = Step(
            self._slot_mapping(
                torch.cat((row_slots, token_slots)), torch.cat((row_positions, positions))
            ),
            row_slots.int(),
            (row_positions + 1).int(),
            chunks=tuple(chunks),
            chunk_slots=slots,
            chunk_lengths=lengths,
            chunk_starts=starts,
            prefill_lengths=known_lengths,
            block_tables=self._block_tables,
        )
        self._logits_slots = torch.cat((row_slots, logits_slots))
        logits_at: torch.Tensor | None = None
        if not every_token:
            first_rows = torch.arange(len(row_slots), device=self.device)
            logits_at = torch.cat((first_rows, last_tokens + len(row_slots)))
        all_ids = torch.cat((self._newest_tokens[row_slots], ids))
        all_positions = torch.cat((row_positions, positions))
        if hidden:
            return self._hidden_states(step, all_ids, all_positions)
        return self._forward(step, all_ids, all_positions, logits_at)

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
        sizes: Iterable[int] = self._decode_graphs
        if batch_invariant:
            sizes = [size for size in sizes if size <= INVARIANT_ROWS]
        size = graph_size(sizes, count, batch_invariant=batch_invariant)
        if size is None or self._inputs is None:
            return self._decode_eagerly(slots, positions, batch_invariant=batch_invariant)
        self._fill_rows(self._inputs, DecodeRows(slots, positions), size)
        self._logits_slots = self._inputs.slot_indices[:count]
        graph, logits = self._decode_graphs[size]
        if self._prefixes.used and not batch_invariant:
            graph, logits = self._sharing_decode_graphs.get(size, (graph, logits))
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
        if logits_at is not None:
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

    def _upload(self, values: Sequence[int]) -> torch.Tensor:
        """int64 on the device, without waiting for the copy."""
        host = torch.tensor(values, dtype=torch.long, pin_memory=self.asynchronous)
        return host.to(self.device, non_blocking=True)

    # ---- CUDA graphs

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
        for mixed in mixed_sizes(self.slots):
            progress(f"capturing the graph of {mixed.tokens} prompt tokens, {mixed.rows} rows")
            self._prefill_graphs[mixed] = self._record_prefill(recorder, self._inputs, mixed)
        if self.prefix_tile_rows:
            progress("capturing the graphs that read shared prefixes once")
            self._capture_sharing_graphs(recorder, self._inputs)

    def _capture_sharing_graphs(self, recorder: GraphRecorder, inputs: DecodeInputs) -> None:
        """Those of the sizes that have one already, or none if one of them fails."""
        try:
            for size in reversed(self._decode_graphs):
                if may_share(0, size):
                    graph = self._record_decode(recorder, inputs, size, shares=True)
                    self._sharing_decode_graphs[size] = graph
            for mixed in self._prefill_graphs:
                if may_share(*mixed):
                    mixed_graph = self._record_prefill(recorder, inputs, mixed, shares=True)
                    self._sharing_prefill_graphs[mixed] = mixed_graph
        except Exception as error:  # Triton's errors are no RuntimeErrors
            log.warning("shared prefixes are read for each sequence", reason=one_line(error))
            self._sharing_decode_graphs.clear()
            self._sharing_prefill_graphs.clear()

    def _kept_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """A copy in memory that all graphs share: theirs, one each, would be gigabytes."""
        if self._graph_logits is None:
            shape = (self.slots + MAX_CHUNKS, logits.shape[1])
            self._graph_logits = torch.empty(shape, dtype=logits.dtype, device=logits.device)
        return self._graph_logits[: len(logits)].copy_(logits)

    def _record_decode(
        self, recorder: GraphRecorder, inputs: DecodeInputs, size: int, *, shares: bool = False
    ) -> DecodeGraph:
        self._fill_rows(inputs, NO_ROWS, size)

        def run() -> torch.Tensor:
            slot_indices, positions = inputs.slot_indices[:size], inputs.positions[:size]
            step = Step(
                self._slot_mapping(slot_indices, positions),
                inputs.slots[:size],
                inputs.lengths[:size],
                block_tables=self._block_tables,
                prefixes=self._prefixes.of_rows(slot_indices) if shares else None,
            )
            ids = self._newest_tokens[slot_indices]
            return self._kept_logits(self._forward(step, ids, positions, None))

        return DecodeGraph(*recorder.record(run))

    def _record_prefill(
        self,
        recorder: GraphRecorder,
        inputs: DecodeInputs,
        size: MixedSize,
        *,
        shares: bool = False,
    ) -> PrefillGraph:
        count = size.tokens
        packed = torch.zeros(4 * count + 2 * MAX_CHUNKS, dtype=torch.long, device=self.device)
        ids, token_slots, positions, known_lengths, last_tokens, logits_slots = packed.split(
            [count, count, count, count, MAX_CHUNKS, MAX_CHUNKS]
        )
        table = torch.zeros(3 * MAX_CHUNKS + 1, dtype=torch.int32, device=self.device)
        slots, lengths, starts = table.split([MAX_CHUNKS, MAX_CHUNKS, MAX_CHUNKS + 1])
        token_slots.fill_(self._spare_slot)
        slots.fill_(self._spare_slot)
        self._fill_rows(inputs, NO_ROWS, size.rows)

        def run() -> torch.Tensor:  # whatever it reads must live as long as the graph
            row_slots = inputs.slot_indices[: size.rows]
            all_positions = torch.cat((inputs.positions[: size.rows], positions))
            step = Step(
                self._slot_mapping(torch.cat((row_slots, token_slots)), all_positions),
                inputs.slots[: size.rows],
                inputs.lengths[: size.rows],
                chunk_slots=slots,
                chunk_lengths=lengths,
                chunk_starts=starts,
                prefill_lengths=known_lengths,
                block_tables=self._block_tables,
                prefixes=self._prefixes.of_rows(row_slots) if shares else None,
            )
            all_ids = torch.cat((self._newest_tokens[row_slots], ids))
            first_rows = torch.arange(size.rows, device=self.device)
            logits_at = torch.cat((first_rows, last_tokens + size.rows))
            return self._kept_logits(self._forward(step, all_ids, all_positions, logits_at))

        graph, logits = recorder.record(run)
        return PrefillGraph(graph, logits, packed, table, logits_slots)
