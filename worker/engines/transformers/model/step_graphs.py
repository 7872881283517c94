"""The CUDA graphs of a runner's steps: which there are, and which one a step takes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import structlog
import torch

from worker.engines.transformers.model.cuda_graphs import (
    GRAPH_BATCH_SIZES,
    INVARIANT_ROWS,
    MAX_CHUNKS,
    SHORT_TOKENS,
    GraphRecorder,
    MixedSize,
    graph_size,
    may_be_short,
    may_share,
    mixed_sizes,
    sizes_beside,
)
from worker.engines.transformers.model.packing import MixedInputs
from worker.errors import one_line

log = structlog.get_logger(__name__)

Run = Callable[[], torch.Tensor]  # a step on static inputs, to its logits
Progress = Callable[[str], None]


class DecodeGraph(NamedTuple):
    """A decoding step of a fixed number of rows."""

    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor  # [rows, vocabulary], overwritten by each replay


class MixedGraph(NamedTuple):
    """A step of a fixed number of tokens: of up to so many rows, then of MAX_CHUNKS chunks."""

    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor  # [rows + MAX_CHUNKS, vocabulary], overwritten by each replay
    inputs: MixedInputs


class Steps(Protocol):
    """What is recorded; a runner keeps this. Whatever a step reads must live as long as it."""

    def decode_step(self, size: int, *, longest: int = 0, shares: bool = False) -> Run:
        """A token for each of `size` rows. `longest`: see Step. `shares`: reads shared prefixes
        once.
        """

    def mixed_step(self, size: MixedSize, *, shares: bool = False) -> tuple[Run, MixedInputs]:
        """Rows and chunks."""


class StepGraphs:
    """Empty until `capture`; a step that no graph fits is computed without."""

    def __init__(self, slots: int, context: int) -> None:
        self._slots = slots
        self._context = context
        self.decode: dict[int, DecodeGraph] = {}
        self.mixed: dict[MixedSize, MixedGraph] = {}
        # The same again, for some sizes: of short rows, and with shared prefixes read once.
        self.short_decode: dict[int, DecodeGraph] = {}
        self.sharing_decode: dict[int, DecodeGraph] = {}
        self.sharing_mixed: dict[MixedSize, MixedGraph] = {}
        self._logits: torch.Tensor | None = None  # of whichever graph was replayed last

    def clear(self) -> None:
        """Forgets all of them."""
        for decode_graphs in (self.decode, self.short_decode, self.sharing_decode):
            decode_graphs.clear()
        for mixed_graphs in (self.mixed, self.sharing_mixed):
            mixed_graphs.clear()
        self._logits = None

    # ---- choosing

    def decode_size(self, rows: int, *, batch_invariant: bool) -> int | None:
        """Rows of the graph that `rows` fit into."""
        sizes = list(self.decode)
        if batch_invariant:
            sizes = [size for size in sizes if size <= INVARIANT_ROWS]
        return graph_size(sizes, rows, batch_invariant=batch_invariant)

    def decode_graph(
        self, size: int, positions: Sequence[int], *, shares: bool, batch_invariant: bool
    ) -> DecodeGraph:
        """`size`: as `decode_size` gave it. `shares`: shared prefixes are worth reading once."""
        if batch_invariant:
            return self.decode[size]
        if shares and size in self.sharing_decode:
            return self.sharing_decode[size]
        if size in self.short_decode and max(positions) < SHORT_TOKENS:
            return self.short_decode[size]
        return self.decode[size]

    def mixed_graph(
        self, tokens: int, rows: int, chunks: int, *, shares: bool, batch_invariant: bool
    ) -> MixedGraph | None:
        """`tokens`: of rows and chunks together."""
        if chunks > MAX_CHUNKS:
            return None
        beside = {size.tokens: size for size in sizes_beside(rows, self.mixed)}
        chosen = graph_size(beside, tokens, batch_invariant=batch_invariant)
        if chosen is None:
            return None
        size = beside[chosen]
        if shares and not batch_invariant and size in self.sharing_mixed:
            return self.sharing_mixed[size]
        return self.mixed[size]

    # ---- recording

    def capture(
        self, steps: Steps, recorder: GraphRecorder, progress: Progress, *, shares: bool
    ) -> None:
        """Records `steps`; the largest come first: smaller ones reuse their memory. Raises
        RuntimeError. `shares`: also with shared prefixes read once, where that can be recorded.
        """
        sizes = [size for size in GRAPH_BATCH_SIZES if size < self._slots] + [self._slots]
        decode: dict[int, DecodeGraph] = {}
        for number, size in enumerate(reversed(sizes), 1):
            progress(f"capturing the graph of a batch of {size} ({number} of {len(sizes)})")
            decode[size] = self._record_decode(recorder, steps.decode_step(size))
            if may_be_short(size, self._context):
                short = steps.decode_step(size, longest=SHORT_TOKENS)
                self.short_decode[size] = self._record_decode(recorder, short)
        self.decode = dict(sorted(decode.items()))
        for mixed in mixed_sizes(self._slots):
            progress(f"capturing the graph of {mixed.tokens} tokens, up to {mixed.rows} rows")
            self.mixed[mixed] = self._record_mixed(recorder, *steps.mixed_step(mixed))
        if shares:
            progress("capturing the graphs that read shared prefixes once")
            self._capture_sharing(steps, recorder)

    def _capture_sharing(self, steps: Steps, recorder: GraphRecorder) -> None:
        """Of the sizes that have a graph already, or none if one of them fails."""
        try:
            for size in reversed(self.decode):
                if may_share(0, size):
                    run = steps.decode_step(size, shares=True)
                    self.sharing_decode[size] = self._record_decode(recorder, run)
            for mixed in self.mixed:
                if may_share(*mixed):
                    recorded = steps.mixed_step(mixed, shares=True)
                    self.sharing_mixed[mixed] = self._record_mixed(recorder, *recorded)
        except Exception as error:  # Triton's errors are no RuntimeErrors
            log.warning("shared prefixes are read for each sequence", reason=one_line(error))
            self.sharing_decode.clear()
            self.sharing_mixed.clear()

    def _record_decode(self, recorder: GraphRecorder, run: Run) -> DecodeGraph:
        return DecodeGraph(*recorder.record(lambda: self._kept(run())))

    def _record_mixed(self, recorder: GraphRecorder, run: Run, inputs: MixedInputs) -> MixedGraph:
        graph, logits = recorder.record(lambda: self._kept(run()))
        return MixedGraph(graph, logits, inputs)

    def _kept(self, logits: torch.Tensor) -> torch.Tensor:
        """A copy in memory that all graphs share: theirs, one each, would be gigabytes."""
        if self._logits is None:
            shape = (self._slots + MAX_CHUNKS, logits.shape[1])
            self._logits = torch.empty(shape, dtype=logits.dtype, device=logits.device)
        return self._logits[: len(logits)].copy_(logits)
