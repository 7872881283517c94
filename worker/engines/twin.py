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

from worker.engines.alone import AloneRow
from worker.engines.attention import NAME, Piece, register
from worker.engines.batch import Batch, Prefill
from worker.engines.fitting import Kind, Shape, attention_of, check_equal
from worker.engines.rope import LengthLimit, choose_by_sequence
from worker.engines.shrinking import shrunk
from worker.engines.slotmodel import SlotModel, Unfit
from worker.errors import one_line

LENGTHS = (4, 13, 33)  # of the prompts: below every limit, across one by its answer, beyond all of them
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
    return [torch.randint(3, vocabulary, (length + more,), generator=generator).tolist() for length in lengths]


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
    slots = list(range(len(LENGTHS)))
    over = SlotModel(twin.model, len(slots), max(LENGTHS) + MORE)
    over.allocate(shape.modules, shape.places)
    made: list[list[torch.Tensor]] = [[] for _ in slots]
    with attention_of(twin.model, NAME), torch.inference_mode(), _unfit():
        _read(over, made, {row: twin.sequences[row][:length] for row, length in enumerate(LENGTHS)})
        for more in range(MORE):
            known = {row: twin.sequences[row][: LENGTHS[row] + more + 1] for row in slots}
            again = {row: known[row] for row in slots if len(known[row]) - 1 == reread}
            going = [row for row in slots if row not in again]
            _decode(over, made, {row: known[row] for row in going})
            _read(over, made, again)
    over.release()
    return [torch.stack(each).float() for each in made]


def _read(over: SlotModel, made: list[list[torch.Tensor]], prompts: dict[int, list[int]]) -> None:
    """Each into the slot of its number; what comes after it is the next of `made` there."""
    longest = max((len(prompt) for prompt in prompts.values()), default=0)
    for start in range(0, longest, _AT_ONCE):
        rows = [row for row in prompts if len(prompts[row]) > start]
        parts = [prompts[row][start : start + _AT_ONCE] for row in rows]
        pieces = []
        for row, part in zip(rows, parts, strict=True):
            pieces.append(Piece(row, start, len(part), len(prompts[row])))
        ends = [piece.end == piece.whole for piece in pieces]
        logits = over.prefill(pieces, parts, ends)
        ended = [piece.slot for piece, end in zip(pieces, ends, strict=True) if end]
        _keep(made, ended, logits)


def _decode(over: SlotModel, made: list[list[torch.Tensor]], known: dict[int, list[int]]) -> None:
    """The newest token of each slot, which is fed as if it had been chosen."""
    slots = list(known)
    over._asked = torch.tensor(slots)
    over.feed(torch.tensor([tokens[-1] for tokens in known.values()]))
    logits = over.decode(slots, [len(tokens) - 1 for tokens in known.values()])
    _keep(made, slots, logits)


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


def _keep(made: list[list[torch.Tensor]], rows: list[int], logits: torch.Tensor) -> None:
    for row, each in zip(rows, logits, strict=True):
        made[row].append(each.clone())
