"""A transformers model over a fixed number of slots: prompts are read in pieces, all running sequences move by one
token.

On a GPU a decoding step is a CUDA graph, captured once for each of a few batch sizes: a step is one launch, whatever
the host's speed. What the graph reads lies in fixed tensors, filled by one small copy. On a CPU the rows that are there
are computed and nothing else.
"""

import time
from collections.abc import Callable, Iterable
from itertools import accumulate
from operator import add
from typing import Any, NamedTuple

import torch

from worker.engines.transformers.model import attention
from worker.engines.transformers.model.attention import Piece, Step
from worker.engines.transformers.model.rope import LengthLimit

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
_READS = (512, 1024, 2048)  # tokens of prompts in a step that is a graph
PIECES = 32  # of prompts in such a step
_UPLOADS = 4  # pinned buffers in turn: the host may be that many steps ahead of the copies

Progress = Callable[[str], None]


class Unfit(Exception):
    """This architecture cannot be computed over slots; the text says why."""


class SlotModel:
    """Keys and values of `slots` sequences of up to `context` tokens, and the passes over them."""

    def __init__(self, model: Any, slots: int, context: int) -> None:
        self._model = model
        self.device: torch.device = model.device
        self.slots, self.context = slots, context
        self._layers: list[Any] = []  # attention modules
        self._spread = False  # they are on several devices
        self._clean = [0] * (
            slots + 1
        )  # of each slot: so far there are numbers, of the present sequence or zeros
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._reads: dict[int, _Read] = {}
        self._pool: Any = None
        self.limit: LengthLimit | None = None  # beyond it rotary frequencies differ; see `rope`
        self.capture_mode = "global"  # of CUDA: which calls of other threads spoil a recording
        # One slot more than sequences: padded rows of a graph compute there, and nobody reads it.
        self._spare = slots
        self._last = torch.zeros(
            slots + 1, dtype=torch.long, device=self.device
        )  # newest token of each slot
        self._asked = self._last[:0]  # slots of the rows of the latest logits
        self._inputs = _Inputs(slots, context, self.device) if self.device.type == "cuda" else None

    @property
    def device_ahead(self) -> bool:
        """Steps are only queued here: the host may go on, and read what they made later."""
        return self.device.type == "cuda"

    def allocate(self, shapes: dict[Any, tuple[int, int]], places: dict[Any, torch.device]) -> None:
        """Makes the keys and values; `shapes` gives (kv heads, size) of each attention module, `places` where it
        computes.
        """
        self._layers = list(shapes)
        self._spread = len({*places.values()}) > 1
        if self._spread:
            self._inputs = None  # a graph is one device's
        dtype = self._model.dtype
        for module, (heads, size) in shapes.items():
            shape = (self.slots + 1, self.context, heads, size)
            module.slot_keys = torch.empty(shape, dtype=dtype, device=places[module])
            module.slot_values = torch.empty(shape, dtype=dtype, device=places[module])

    def release(self) -> None:
        """Gives the memory of graphs, keys and values back."""
        self.forget_graphs()
        for module in self._layers:
            del module.slot_keys, module.slot_values
        self._layers = []

    def forget_graphs(self) -> None:
        """Steps are computed without them."""
        self._graphs.clear()
        self._reads.clear()
        self._pool = None

    def check(self) -> None:
        """Raises EngineError if what the device has computed is not right. A single one says so itself."""

    def copy(self, source: int, slot: int, tokens: int) -> None:
        """The first `tokens` of `source` are also in `slot`."""
        for module in self._layers:
            module.slot_keys[slot, :tokens].copy_(module.slot_keys[source, :tokens])
            module.slot_values[slot, :tokens].copy_(module.slot_values[source, :tokens])

    def feed(self, tokens: torch.Tensor) -> None:
        """What was chosen from the latest logits [rows], perhaps still being computed: decoding goes on from it."""
        self._last.index_copy_(0, self._asked, tokens)

    def prefill(
        self, pieces: list[Piece], tokens: list[list[int]], ends: list[bool], *, fixed: bool = False
    ) -> torch.Tensor:
        """Reads pieces of prompts; `ends` says of which the next token is wanted. Logits [wanted, vocabulary]. `fixed`:
        by the largest graph, whatever there is to read; see `decode`.
        """
        count = sum(piece.length for piece in pieces)
        size = _bucket(self._reads, count, fixed=fixed)
        if size is None or len(pieces) > PIECES:
            return self._prefill_plainly(pieces, tokens, ends)
        read, wanted = self._reads[size], sum(ends)
        spare = Piece(self._spare, 0, 0)
        padding = size - count
        self._asked = read.fill(
            self._packed(pieces, tokens, ends, padding, PIECES - wanted),
            self._table([*pieces, *[spare] * (PIECES - len(pieces))]),
        )[:wanted]
        read.graph.replay()
        return read.logits[:wanted]

    def _prefill_plainly(
        self, pieces: list[Piece], tokens: list[list[int]], ends: list[bool]
    ) -> torch.Tensor:
        for piece in pieces:
            self._clean[piece.slot] = (
                piece.start + piece.length
            )  # behind it is what former sequences left
        count, wanted = sum(piece.length for piece in pieces), sum(ends)
        packed = self._upload(self._packed(pieces, tokens, ends, 0, 0))
        parts = [count, count, count, count, wanted, wanted]
        ids, places, positions, reach, keep, self._asked = packed.split(parts)
        table = self._upload(self._table(pieces)).int()
        slots, lengths, starts = table.split([len(pieces), len(pieces), len(pieces) + 1])
        longest = max(piece.length for piece in pieces)
        step = Step(places, slots, lengths, tuple(pieces), starts, longest, reaches=reach)
        return self._forward(step, ids, positions, keep)

    def _clean_up(self, slot: int, length: int) -> None:
        """Decoding without graphs reads somewhat more of a slot than it holds, hidden by a mask; a mask does not help
        where there are no numbers.
        """
        upto, clean = attention.padded(length, self.context), self._clean[slot]
        if clean >= upto:
            return
        for module in self._layers:
            module.slot_keys[slot, clean:upto] = 0
            module.slot_values[slot, clean:upto] = 0
        self._clean[slot] = upto

    def _packed(
        self,
        pieces: list[Piece],
        tokens: list[list[int]],
        ends: list[bool],
        padding: int,
        unwanted: int,
    ) -> list[int]:
        """Of each token its id, its place, its position and its reach; then of each piece whose next token is wanted
        its last token, and then its slot. Padding computes in the spare slot, and nobody reads it.
        """
        positions = [
            at for piece in pieces for at in range(piece.start, piece.start + piece.length)
        ]
        slots = [piece.slot * self.context for piece in pieces for _ in range(piece.length)]
        reaches = [piece.reach for piece in pieces for _ in range(piece.length)]
        spare = [self._spare * self.context] * padding
        last = [
            upto - 1 for upto, end in zip(accumulate(map(len, tokens)), ends, strict=True) if end
        ]
        return [
            *(token for part in tokens for token in part), *[0] * padding,
            *map(add, slots, positions), *spare,
            *positions, *[0] * padding,
            *reaches, *[0] * padding,
            *last, *[0] * unwanted,
            *(piece.slot for piece, end in zip(pieces, ends, strict=True) if end), *[self._spare] * unwanted,
        ]  # fmt: skip

    def _table(self, pieces: list[Piece]) -> list[int]:
        """Of each piece its slot; its length with what the slot held; where it starts among the step's tokens."""
        return [
            *(piece.slot for piece in pieces),
            *(piece.start + piece.length for piece in pieces),
            *accumulate((piece.length for piece in pieces), initial=0),
        ]

    def decode(
        self, slots: list[int], positions: list[int], *, fixed: bool = False
    ) -> torch.Tensor:
        """The newest token of each slot, at `positions`; logits [rows, vocabulary] of what comes next, which the next
        call may overwrite. `fixed`: by the largest graph, however few the rows are. For another number of rows a GPU's
        libraries choose another order of adding up, and rounding differs.
        """
        count = len(slots)
        bucket = _bucket(self._graphs, count, fixed=fixed)
        if bucket is None or self._inputs is None:
            return self._decode_plainly(slots, positions, fixed=fixed)
        padding = bucket - count
        self._inputs.fill(slots + [self._spare] * padding, positions + [0] * padding)
        self._asked = self._inputs.where[:count]
        graph, logits = self._graphs[bucket]
        graph.replay()
        return logits[:count]

    def seconds_to_read(self, tokens: int) -> float:
        """How long a piece of so many tokens takes, measured now, in a slot that nobody has."""
        torch.cuda.synchronize(self.device)
        since = time.perf_counter()
        self.prefill([Piece(self._spare, 0, tokens)], [[0] * tokens], [True])
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - since

    def capture(self, progress: Progress) -> None:
        """Records a graph for each batch size. Smaller ones last: they reuse the memory of the larger ones."""
        if (
            self._inputs is None or self._model.dtype == torch.float32
        ):  # its attention asks the host for each length
            return
        if self.limit is not None and not self.limit.switched:  # its frequencies ask, too
            return
        sizes = [size for size in BUCKETS if size < self.slots] + [self.slots]
        graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        for done, size in enumerate(reversed(sizes)):
            progress(f"preparing a batch of {size} ({done + 1} of {len(sizes)})")
            self._inputs.fill([self._spare] * size, [0] * size)
            graphs[size] = self._record(self._inputs, size)
        self._graphs = dict(sorted(graphs.items()))
        for size in _READS:
            progress(f"preparing to read {size} tokens at once")
            self._reads[size] = self._record_reading(size)

    def _record(self, inputs: "_Inputs", size: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        step = Step(inputs.places[:size], inputs.slots[:size], inputs.lengths[:size])

        def run() -> torch.Tensor:
            ids = self._last[inputs.where[:size]]
            return self._forward(step, ids, inputs.positions[:size], None)

        return self._recorded(run)

    def _record_reading(self, size: int) -> "_Read":
        numbers = torch.zeros(4 * size + 2 * PIECES, dtype=torch.long, device=self.device)
        ids, places, positions, reach, keep, asked = numbers.split([size] * 4 + [PIECES] * 2)
        table = torch.zeros(3 * PIECES + 1, dtype=torch.int32, device=self.device)
        slots, lengths, starts = table.split([PIECES, PIECES, PIECES + 1])
        places.fill_(self._spare * self.context)
        slots.fill_(self._spare)
        step = Step(places, slots, lengths, (), starts, size, reaches=reach)
        graph, logits = self._recorded(lambda: self._forward(step, ids, positions, keep))
        return _Read(graph, logits, numbers, table, asked)

    def _recorded(
        self, run: Callable[[], torch.Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(
                2
            ):  # compiles, and lets the libraries allocate what they want outside the graph
                run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode=self.capture_mode):
            logits = run()
        self._pool = graph.pool()
        return graph, logits

    def _decode_plainly(
        self, slots: list[int], positions: list[int], *, fixed: bool
    ) -> torch.Tensor:
        pieces = tuple(
            Piece(slot, position, 1) for slot, position in zip(slots, positions, strict=True)
        )
        where = self._asked = self._upload(slots)
        at = self._upload(positions)
        ids = self._last[where]
        for slot, position in zip(slots, positions, strict=True):
            self._clean_up(slot, position + 1)
        step = Step(where * self.context + at, where.int(), (at + 1).int(), pieces, fixed=fixed)
        return self._forward(step, ids, at, None)

    def _forward(
        self, step: Step, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor | None
    ) -> torch.Tensor:
        # It picks from what the last device holds; a tensor would be moved to the first one on its way into the model.
        picks = keep.tolist() if self._spread and keep is not None else keep
        with attention.now(step):
            output = self._model(
                input_ids=ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=0 if picks is None else picks,
            )
        logits: torch.Tensor = output.logits
        return logits[0].to(self.device)

    def _upload(self, numbers: list[int]) -> torch.Tensor:
        """int64 on the device, without waiting for it."""
        host = torch.tensor(numbers, dtype=torch.long, pin_memory=self.device_ahead)
        return host.to(self.device, non_blocking=True)


def _bucket(graphs: Iterable[int], count: int, *, fixed: bool) -> int | None:
    """The smallest size that `count` fits into, or the largest of all; None if there is none."""
    fitting = [size for size in graphs if size >= count]
    return (max if fixed else min)(fitting, default=None)


class _Read(NamedTuple):
    """A graph that reads pieces of prompts, and what it reads."""

    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor
    numbers: torch.Tensor
    table: torch.Tensor
    asked: torch.Tensor  # a part of `numbers`

    def fill(self, numbers: list[int], table: list[int]) -> torch.Tensor:
        """Returns the slots of the pieces whose next token is wanted."""
        self.numbers.copy_(torch.tensor(numbers, pin_memory=True), non_blocking=True)
        self.table.copy_(torch.tensor(table, dtype=torch.int32, pin_memory=True), non_blocking=True)
        return self.asked


class _Inputs:
    """What the graphs read. Filled from pinned buffers in turn: no step waits for the copy of the one before."""

    def __init__(self, slots: int, context: int, device: torch.device) -> None:
        self._context = context
        self._hosts = [
            torch.empty((2, slots), dtype=torch.long, pin_memory=True) for _ in range(_UPLOADS)
        ]
        self._sent = [torch.cuda.Event() for _ in range(_UPLOADS)]
        self._turn = 0
        self._both = torch.zeros((2, slots), dtype=torch.long, device=device)
        self.where = self._both[0]  # the slots, as indices
        self.slots = torch.zeros(slots, dtype=torch.int32, device=device)
        self.lengths = torch.zeros(slots, dtype=torch.int32, device=device)
        self.places = torch.zeros(slots, dtype=torch.long, device=device)
        self.positions = torch.zeros(slots, dtype=torch.long, device=device)

    def fill(self, slots: list[int], positions: list[int]) -> None:
        """The next step's rows."""
        count = len(slots)
        host, sent = self._hosts[self._turn], self._sent[self._turn]
        self._turn = (self._turn + 1) % _UPLOADS
        sent.synchronize()  # its copy of some steps ago; long done
        host[:, :count] = torch.tensor([slots, positions])
        both = self._both[:, :count]
        both.copy_(host[:, :count], non_blocking=True)
        sent.record()
        self.slots[:count] = both[0]
        self.lengths[:count] = both[1] + 1
        self.positions[:count] = both[1]
        torch.add(both[1], both[0], alpha=self._context, out=self.places[:count])
