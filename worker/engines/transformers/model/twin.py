"""The proof of what a model does beyond its windows, by a small model of the same class.

A mask that begins to matter after 4,096 tokens cannot be seen with a short prompt, and a long one
through a large model would take minutes. So a twin is made: the same class, random weights, a
config whose windows, chunks and limits are a few tokens wide (`shrinking`). Prompts below, at and
beyond them are read in pieces, decoded together across the limits, and compared with the library's
own steps for each sequence alone.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from worker.engines.transformers.fallback.batch import Batch, Prefill
from worker.engines.transformers.fallback.one_by_one import AloneRow
from worker.engines.transformers.model.attention import NAME, Piece, register
from worker.engines.transformers.model.probe import Kind, Shape, attention_of, check_equal
from worker.engines.transformers.model.rope import LengthLimit, choose_by_sequence
from worker.engines.transformers.model.runner import SlotModel, Unfit
from worker.engines.transformers.model.shrunk_config import shrunk
from worker.errors import one_line

LENGTHS = (
    4,
    13,
    33,
)  # of the prompts: below every limit, across one by its answer, beyond all of them
MORE = 6  # tokens of each answer
_AT_ONCE = 7  # tokens of a prompt that are read at a time
_SHORT = (4, 9)  # of the large model's prompts
_UNTRIED = "what it does beyond its windows cannot be tried"
_STEEP = 0.12  # of the weights: so much that what a token sees decides what comes next


class Twin:
    """The small model, made when it is needed, and what the library's own steps answer with it."""

    def __init__(self, model: Any) -> None:
        self._large = model

    @cached_property
    def model(self) -> Any:
        """Raises Unfit if the architecture cannot be made small."""
        with torch.random.fork_rng(devices=[]), _untried():
            torch.manual_seed(11)
            return _made(self._large)

    @cached_property
    def limit(self) -> LengthLimit | None:
        """See `rope`."""
        return choose_by_sequence(self.model)

    @cached_property
    def sequences(self) -> list[list[int]]:
        """Prompts of LENGTHS, each with MORE tokens of an answer."""
        return script(self.model, LENGTHS, MORE)

    @cached_property
    def answers(self) -> list[torch.Tensor]:
        """Of each sequence the logits [1 + MORE, vocabulary] after its prompt and each further
        token. Raises Unfit.
        """
        with _untried():
            return [alone_answer(self.model, sequence, MORE) for sequence in self.sequences]


def script(model: Any, lengths: Many[int], more: int) -> list[list[int]]:
    """Random tokens: a prompt of each length, with as many tokens behind it."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(3, vocabulary, (length + more,), generator=generator).tolist()
        for length in lengths
    ]


def prove_slots(twin: Twin, kinds: set[Kind]) -> bool:
    """Whether slots give the library's answers at every length; returns whether a sequence that
    grows beyond the limit of its rotary frequencies has to be read anew (some architectures do that).
    `kinds`: of the large model's attention, all of which the twin must have. Raises Unfit.
    """
    shape = Shape(twin.model)
    if missing := kinds - shape.kinds:
        raise Unfit(f"{_UNTRIED}: a small model of its kind has no {min(missing).module} like it")
    limit = twin.limit
    if limit is None:
        _check(_over_slots(twin, shape, None), twin.answers, twin.model.dtype)
        return False
    try:
        _check(_over_slots(twin, shape, None), twin.answers, twin.model.dtype)
    except Unfit:
        _check(_over_slots(twin, shape, limit.tokens), twin.answers, twin.model.dtype)
        return True
    return False


def prove_rows(twin: Twin, model: Any) -> None:
    """Whether rows that are padded and computed together give the library's answers for each alone:
    the twin's at every length, and the large model's at short ones. Raises Unfit.
    """
    with _unfit():
        sequences = script(model, _SHORT, MORE)
        got = _in_rows(model, sequences)
        wanted = [alone_answer(model, sequence, MORE) for sequence in sequences]
    _check(got, wanted, model.dtype)
    with _unfit():
        got = _in_rows(twin.model, twin.sequences)
    _check(got, twin.answers, twin.model.dtype)


@torch.inference_mode()
def alone_answer(model: Any, sequence: list[int], more: int) -> torch.Tensor:
    """By the library's own steps: logits [1 + more, vocabulary] after the prompt and each of the
    last `more` tokens.
    """
    row = AloneRow(model, sequence[:-more])
    made = [row.read()]
    made += [row.step(token) for token in sequence[-more:]]
    return torch.stack(made).float()


def _check(got: list[torch.Tensor], wanted: list[torch.Tensor], dtype: torch.dtype) -> None:
    try:
        check_equal(dtype, got, wanted)
    except Unfit as error:
        raise Unfit(f"at some length, {error}") from error


@contextmanager
def _unfit() -> Iterator[None]:
    """Whatever is raised is a reason not to compute it this way: any architecture may fail in its
    own.
    """
    try:
        yield
    except Unfit:
        raise
    except Exception as error:
        raise Unfit(one_line(error)) from error


@contextmanager
def _untried() -> Iterator[None]:
    """What cannot be tried is not relied upon."""
    try:
        yield
    except Exception as error:  # configs may have any condition
        raise Unfit(f"{_UNTRIED}: {one_line(error)}") from error


def _made(model: Any) -> Any:
    small = shrunk(model.config)
    twin = type(model)(small).float().eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, _STEEP)
    return twin


def _over_slots(twin: Twin, shape: Shape, reread: int | None) -> list[torch.Tensor]:
    """Prompts are read in pieces of several at a time, answers are decoded together. A sequence
    whose newest token is at position `reread` is read anew.
    """
    register()
    rows = range(len(LENGTHS))
    over = SlotModel(twin.model, len(rows), max(LENGTHS) + MORE)
    over.allocate(shape.modules, shape.places)
    trial = _SlotTrial(over, twin.sequences)
    with attention_of(twin.model, NAME), torch.inference_mode(), _unfit():
        trial.read(dict(enumerate(LENGTHS)))
        for more in range(1, MORE + 1):
            lengths = {row: LENGTHS[row] + more for row in rows}
            again = {row: length for row, length in lengths.items() if length - 1 == reread}
            going = {row: length for row, length in lengths.items() if row not in again}
            trial.decode(going)
            trial.read(again)
    over.release()
    return [torch.stack(each).float() for each in trial.made]


class _SlotTrial:
    """Sequences whose tokens are known, each in the slot of its number. `lengths` are those after
    which the next token is wanted.
    """

    def __init__(self, over: SlotModel, sequences: list[list[int]]) -> None:
        self._over = over
        self._sequences = sequences
        self.made: list[list[torch.Tensor]] = [[] for _ in sequences]

    def read(self, lengths: dict[int, int]) -> None:
        """Prompts, some tokens of each at a time."""
        for start in range(0, max(lengths.values(), default=0), _AT_ONCE):
            rows = [row for row, length in lengths.items() if length > start]
            pieces = []
            for row in rows:
                count = min(_AT_ONCE, lengths[row] - start)
                pieces.append(Piece(row, start, count, lengths[row]))
            parts = [self._sequences[piece.slot][start : piece.end] for piece in pieces]
            ends = [piece.end == piece.whole for piece in pieces]
            logits = self._over.prefill(pieces, parts, ends)
            done = {row: lengths[row] for row, end in zip(rows, ends, strict=True) if end}
            self._keep(done, logits)

    def decode(self, lengths: dict[int, int]) -> None:
        """The newest token of each."""
        logits = self._over.decode(list(lengths), [length - 1 for length in lengths.values()])
        self._keep(lengths, logits)

    def _keep(self, lengths: dict[int, int], logits: torch.Tensor) -> None:
        following = []
        for (row, length), each in zip(lengths.items(), logits, strict=True):
            self.made[row].append(each.clone())
            sequence = self._sequences[row]
            following.append(sequence[length] if length < len(sequence) else 0)
        self._over.feed(torch.tensor(following, dtype=torch.long))


class _Scripted:
    """Stands for a sequence whose tokens are known."""

    def __init__(self, row: int, tokens: list[int]) -> None:
        self.row = row
        self.ids = tokens[:-MORE]
        self.coming = tokens[-MORE:]
        self.made: list[torch.Tensor] = []

    @property
    def finished(self) -> bool:
        return len(self.made) > MORE


@torch.inference_mode()
def _in_rows(model: Any, sequences: list[list[int]]) -> list[torch.Tensor]:
    """As rows come and go: some are read, later others join them, then the first ones leave."""
    rows: list[Any] = [_Scripted(row, tokens) for row, tokens in enumerate(sequences)]
    batch = Batch(model)
    for newcomers in (rows[1::2], rows[0::2]):
        prefill = Prefill(model, newcomers)
        while not prefill.done:
            logits = prefill.advance(_AT_ONCE * len(newcomers))
        _take(newcomers, logits)
        batch.adopt(prefill.batch)
        for _ in range(MORE // 2):
            _step(batch)
    while batch.rows:
        _step(batch)
    return [torch.stack(row.made).float() for row in rows]


def _step(batch: Batch) -> None:
    rows: list[Any] = list(batch.rows)
    _take(rows, batch.step([[row.coming[len(row.made) - 1]] for row in rows]))
    batch.remove_finished()


def _take(rows: list[Any], logits: Any) -> None:
    for row, made in zip(rows, logits, strict=True):
        row.made.append(made.clone())
