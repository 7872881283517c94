"""CUDA graphs of a step, and the static tensors that they read."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from worker.engines.transformers.model.step import MAX_PREFIXES, SharedPrefix, SharedPrefixes

GRAPH_BATCH_SIZES = (
    1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 384, 512, 640, 768, 896, 1024,
)  # fmt: skip
INVARIANT_ROWS = 256  # of the graph whose batch shape is constant; see `batch_invariant`
# Of a step, prompts' and decoding rows' together: libraries compute products in tiles of so many
# rows, and a few rows more than a multiple of them cost a tenth of the step.
GRAPH_STEP_TOKENS = (128, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048)
GRAPH_MIXED_ROWS = (0, 256)  # that decode beside a prefill at most, besides all slots
_MIN_PROMPT_TOKENS = 64  # fewer are not worth a graph
MAX_CHUNKS = 64  # prefill chunks in a step that is a graph
# A step has two graphs if it may be worth reading shared prefixes once: with one that does, and
# nothing shared, an H200 takes up to 3 % longer for a layer's attention.
_MIN_SHARING_ROWS = 8
_MAX_SHARING_TOKENS = 512  # of prompts' and rows': larger steps take long for other reasons
# Bytes of a layer's keys and values: a prefix kernel takes as long as reading a third of it does.
_MIN_SAVED_BYTES = 96 << 20
# Rows of up to so many tokens are one part each to a kernel, so a step of such rows alone needs
# neither programs for more parts nor their sum. It has a graph of its own where that counts: with
# fewer rows all are split, with more the kernels take long for other reasons.
SHORT_TOKENS = 2048
_SHORT_ROWS = range(32, 257)
# Of the last layer's products, where it is computed of the wanted tokens alone (`last_layer`):
# as many as a step whose batch shape is constant may have, as products of fewer rows may be divided
# by what a measurement at this start has said; more in whole tiles.
_MIN_KEPT_ROWS, _KEPT_TILE = INVARIANT_ROWS, 128
_UPLOAD_BUFFERS = 4  # pinned, in turn: the host may be that many steps ahead of the copies


class MixedSize(NamedTuple):
    """The shape of a step that computes prompts and decodes, too."""

    tokens: int  # of rows and prompts together
    rows: int  # that decode, at most


def mixed_sizes(slots: int) -> list[MixedSize]:
    """Of the graphs that compute prompts, the largest first."""
    sizes: list[MixedSize] = []
    for tokens in reversed(GRAPH_STEP_TOKENS):
        rows = {min(size, slots, tokens - _MIN_PROMPT_TOKENS) for size in GRAPH_MIXED_ROWS}
        rows.add(min(slots, tokens - _MIN_PROMPT_TOKENS))
        sizes += [MixedSize(tokens, size) for size in sorted(rows, reverse=True)]
    return sizes


def kept_rows(size: MixedSize) -> int:
    """Of how many tokens a graph computes its last layer; 0: of all."""
    wanted = size.rows + MAX_CHUNKS
    rows = max(_MIN_KEPT_ROWS, -(-wanted // _KEPT_TILE) * _KEPT_TILE)
    return rows if rows < size.tokens else 0


def may_share(tokens: int, rows: int) -> bool:
    """Whether a step of so many tokens, and rows among them, has a graph that reads shared
    prefixes.
    """
    return rows >= _MIN_SHARING_ROWS and tokens <= max(rows, _MAX_SHARING_TOKENS)


def may_be_short(rows: int, context: int) -> bool:
    """Whether a step of so many rows has a graph for short ones alone."""
    return rows in _SHORT_ROWS and context > SHORT_TOKENS


def sizes_beside(rows: int, sizes: Iterable[MixedSize]) -> list[MixedSize]:
    """For each number of tokens the size with room for so many rows that has the least to spare."""
    fitting: dict[int, MixedSize] = {}
    for size in sorted(sizes):
        if size.rows >= rows:
            fitting.setdefault(size.tokens, size)
    return list(fitting.values())


class DecodeInputs:
    """What all graphs read of the rows that decode. Filled from pinned buffers in turn, so that no
    step waits for the copy of the one before.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self._hosts: list[torch.Tensor] = []
        self._copied: list[torch.cuda.Event] = []
        for _ in range(_UPLOAD_BUFFERS):
            self._hosts.append(torch.empty((2, slots), dtype=torch.long, pin_memory=True))
            self._copied.append(torch.cuda.Event())
        self._next_buffer = 0
        self._uploaded = torch.zeros((2, slots), dtype=torch.long, device=device)
        self.slot_indices = self._uploaded[0]
        self.slots = torch.zeros(slots, dtype=torch.int32, device=device)
        self.lengths = torch.zeros(slots, dtype=torch.int32, device=device)
        self.positions = torch.zeros(slots, dtype=torch.long, device=device)

    def fill(self, slots: list[int], positions: list[int]) -> None:
        """Uploads the next step's rows. A position of -1 marks an unused row."""
        count = len(slots)
        host, copied = self._hosts[self._next_buffer], self._copied[self._next_buffer]
        self._next_buffer = (self._next_buffer + 1) % _UPLOAD_BUFFERS
        copied.synchronize()  # of some steps ago, so it hardly ever waits
        host[:, :count] = torch.tensor([slots, positions])
        uploaded = self._uploaded[:, :count]
        uploaded.copy_(host[:, :count], non_blocking=True)
        copied.record()
        self.slots[:count] = uploaded[0]
        self.lengths[:count] = uploaded[1] + 1
        self.positions[:count] = uploaded[1].clamp(min=0)


class PrefixInputs:
    """What all graphs read of the prefixes that sequences share. It is by slot, so that a step
    uploads nothing.
    """

    def __init__(self, slots: int, device: torch.device, token_bytes: int, tile_rows: int) -> None:
        """`token_bytes`: of a token's keys and values in a layer. `tile_rows`: for so many rows a
        prefix is read once; 0: none is.
        """
        self.used = False  # whether a step is faster if it reads what is shared once
        self._token_bytes = token_bytes
        self._tile_rows = tile_rows
        self._sizes = [slots + 1, slots, MAX_PREFIXES + 1, MAX_PREFIXES]
        self._table = torch.zeros(sum(self._sizes), dtype=torch.int32, device=device)
        self._lengths, self._members, self._starts, self._tokens = self._table.split(self._sizes)
        self._row_of_slot = torch.zeros(slots + 1, dtype=torch.int32, device=device)
        self._rows = torch.arange(slots, dtype=torch.int32, device=device)
        self._pinned = device.type == "cuda"

    def fill(self, prefixes: list[SharedPrefix]) -> None:
        """From the next step on these are shared: no slot in two of them, at most MAX_PREFIXES."""
        self.used = self._saved_bytes(prefixes) >= _MIN_SAVED_BYTES
        if not self.used:
            return
        lengths, members, starts, tokens = ([0] * size for size in self._sizes)
        end = 0
        for number, prefix in enumerate(prefixes):
            starts[number], tokens[number] = end, prefix.tokens
            for slot in prefix.slots:
                lengths[slot] = prefix.tokens
            members[end : end + len(prefix.slots)] = prefix.slots
            end += len(prefix.slots)
        starts[len(prefixes) :] = [end] * (len(starts) - len(prefixes))
        table = [*lengths, *members, *starts, *tokens]
        host = torch.tensor(table, dtype=torch.int32, pin_memory=self._pinned)
        self._table.copy_(host, non_blocking=True)

    def _saved_bytes(self, prefixes: list[SharedPrefix]) -> int:
        if not self._tile_rows:
            return 0
        tokens = sum(prefix.saved_tokens(self._tile_rows) for prefix in prefixes)
        return tokens * self._token_bytes

    def of_rows(self, slots: torch.Tensor) -> SharedPrefixes:
        """What a graph's rows read, whose slots are [rows] int64."""
        self._row_of_slot.index_copy_(0, slots, self._rows[: len(slots)])
        return SharedPrefixes(
            self._members, self._starts, self._tokens, self._row_of_slot, self._lengths[slots]
        )


class GraphRecorder:
    """Records graphs that share one memory pool."""

    def __init__(self, device: torch.device, capture_mode: str) -> None:
        """`capture_mode`: torch's `capture_error_mode`, which calls of other threads spoil it."""
        self._device = device
        self._capture_mode = capture_mode
        self._pool: Any = None

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """The graph of `run`, and what it returns. Raises RuntimeError."""
        current = torch.cuda.current_stream(self._device)
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            run()  # compiles
            if self._pool is None:  # the first graph: some libraries set themselves up twice
                run()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode=self._capture_mode):
            output = run()
        self._pool = graph.pool()
        return graph, output


def graph_size(sizes: Iterable[int], count: int, *, batch_invariant: bool) -> int | None:
    """The smallest size that `count` fits into, or the largest of all, so that the batch shape is
    constant; None if there is none.
    """
    large_enough = [size for size in sizes if size >= count]
    if not large_enough:
        return None
    if batch_invariant:
        return max(large_enough)
    return min(large_enough)
