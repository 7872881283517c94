"""The compatibility probe: a model is computed in a way only if that gives the library's answers.

`create_runner` compares a few short prompts on the model itself, whose float8 layers do not round
their inputs meanwhile: both ways have the same layers. `probe_runner` and `probe_padded_batch` go
beyond every window and limit of the architecture, on a miniature of the model. A model with another
kind of cache, an attention that cannot be replaced, or a mask that the runner does not know fails
one of them; `fallback` computes it then.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from typing import Any

import structlog
import torch

from worker.engines.transformers.fallback.padded import PaddedBatch
from worker.engines.transformers.model import attention, settings
from worker.engines.transformers.model.cache_size import CacheSize, blocks_for
from worker.engines.transformers.model.errors import UnsupportedModel
from worker.engines.transformers.model.float8 import FLOAT8
from worker.engines.transformers.model.float8_linear import Float8Linear, exact_products
from worker.engines.transformers.model.kv_cache import (
    AttentionKind,
    KVCacheLayout,
    attention_function,
    set_attention_function,
)
from worker.engines.transformers.model.last_layer import keep_tail
from worker.engines.transformers.model.memory import uses_pages
from worker.engines.transformers.model.miniature import (
    ANSWER_TOKENS,
    PROMPT_LENGTHS,
    UNTESTED,
    Miniature,
    library_logits,
    random_sequences,
)
from worker.engines.transformers.model.rope import RopeLimit
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.engines.transformers.model.step import BlockRange, PrefillChunk
from worker.errors import one_line

log = structlog.get_logger(__name__)

_SHORT_PROMPT, _SHORT_ANSWER = 11, 3  # tokens: prefilled as 7 + 4, then decoded one at a time
_FIRST_CHUNK = 7
_CHUNK = 7  # tokens of each prompt that are prefilled at a time
_BATCH_PROMPTS = (4, 9)  # lengths, for the padded batch on the model itself
# The largest difference of logits, in standard deviations, that rounding explains.
_FLOAT32_TOLERANCE, _TOLERANCE, _FLOAT8_TOLERANCE = 1e-3, 0.25, 1.0
_ROUNDED_INPUTS_TOLERANCE = 3.0  # unrelated logits differ by more than 6

Logits = list[torch.Tensor]  # per sequence: [1 + answer tokens, vocabulary]


def create_runner(
    model: Any,
    layout: KVCacheLayout,
    size: CacheSize,
    *,
    rope_limit: RopeLimit | None = None,
    capture_mode: str = "global",
) -> LocalModelRunner:
    """A runner of `model`, checked on short prompts. The model uses its attention function from
    then on; an unsupported model is left as it was. Raises UnsupportedModel, or RuntimeError where
    there is no memory.
    """
    attention.register()
    runner = LocalModelRunner(model, layout, size, rope_limit=rope_limit, capture_mode=capture_mode)
    try:
        if size.context >= _SHORT_PROMPT + _SHORT_ANSWER:
            with _any_error_unsupported():
                _check_short_prompts(model, runner, layout.dtype)
                _keep_tail(model, layout, runner)
        set_attention_function(model, attention.NAME)
    except Exception:
        runner.release()
        raise
    return runner


def probe_runner(miniature: Miniature, kinds: set[AttentionKind]) -> bool:
    """Checks that a runner gives the library's answers at every length. `kinds`: of the large
    model's attention, all of which the miniature must have.

    Returns whether a sequence that outgrows its RopeLimit has to be prefilled again, as some
    architectures do it. Raises UnsupportedModel.
    """
    layout = KVCacheLayout(miniature.model)
    missing = kinds - layout.kinds
    if missing:
        raise UnsupportedModel(f"{UNTESTED}: its miniature has no {min(missing).module} like it")
    dtype = miniature.model.dtype
    rope_limit = miniature.rope_limit  # which also makes its frequencies the sequences' own
    try:
        _check_all_lengths(_runner_logits(miniature, layout, None), miniature.answers, dtype)
    except UnsupportedModel:
        if rope_limit is None:
            raise
        logits = _runner_logits(miniature, layout, rope_limit.tokens)
        _check_all_lengths(logits, miniature.answers, dtype)
        return True
    return False


def probe_padded_batch(miniature: Miniature, model: Any) -> None:
    """Checks that padded rows computed together give the library's answers for each alone: the
    miniature's at every length, the model's own at short ones. Raises UnsupportedModel.
    """
    with _any_error_unsupported(), exact_products(model):
        sequences = random_sequences(model, _BATCH_PROMPTS, ANSWER_TOKENS)
        logits = _padded_batch_logits(model, sequences)
        expected = [library_logits(model, sequence, ANSWER_TOKENS) for sequence in sequences]
    _check_all_lengths(logits, expected, model.dtype, rounds_inputs=_rounds_inputs(model))
    with _any_error_unsupported():
        logits = _padded_batch_logits(miniature.model, miniature.sequences)
    _check_all_lengths(logits, miniature.answers, miniature.model.dtype)


def check_equal(
    dtype: torch.dtype, logits: Logits, expected: Logits, *, rounds_inputs: bool = False
) -> None:
    """Raises UnsupportedModel if logits of the same tokens differ by more than rounding.
    `rounds_inputs`: of layers, to float8.
    """
    tolerance = _TOLERANCE
    if rounds_inputs:
        tolerance = _ROUNDED_INPUTS_TOLERANCE
    elif dtype == torch.float32:
        tolerance = _FLOAT32_TOLERANCE
    elif dtype == FLOAT8:
        tolerance = _FLOAT8_TOLERANCE
    for actual, reference in zip(logits, expected, strict=True):
        deviation = float(reference.std()) or 1.0
        difference = float((actual - reference).abs().max()) / deviation
        if not difference < tolerance:  # also where it is NaN
            raise UnsupportedModel(f"its answers differ by {difference:.2g} standard deviations")


def _rounds_inputs(model: Any) -> bool:
    """Whether it has float8 layers of the library's, which `exact_products` does not know."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        is_float8 = isinstance(weight, torch.Tensor) and weight.dtype == FLOAT8
        if is_float8 and type(module) is not Float8Linear:
            return True
    return False


def _check_all_lengths(
    logits: Logits, expected: Logits, dtype: torch.dtype, *, rounds_inputs: bool = False
) -> None:
    try:
        check_equal(dtype, logits, expected, rounds_inputs=rounds_inputs)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"at some length, {error}") from error


@contextmanager
def _any_error_unsupported() -> Iterator[None]:
    """An architecture may fail in its own way, whatever the exception."""
    try:
        yield
    except UnsupportedModel:
        raise
    except Exception as error:
        raise UnsupportedModel(one_line(error)) from error


# ---- the model itself, short prompts


def _keep_tail(model: Any, layout: KVCacheLayout, runner: LocalModelRunner) -> None:
    """Where that gives the library's answers, too."""
    if settings.whole_last_layer():
        return
    try:
        with _any_error_unsupported():
            runner.keep_tail(keep_tail(model, layout))
            _check_short_prompts(model, runner, layout.dtype)
    except UnsupportedModel as error:
        runner.compute_whole_tail()
        log.info("the last layer is computed of all tokens", reason=str(error))


def _check_short_prompts(model: Any, runner: LocalModelRunner, dtype: torch.dtype) -> None:
    """`dtype`: of keys and values."""
    sequences = _short_sequences(model, runner.slots)
    with exact_products(model):
        with attention_function(model, attention.NAME):
            logits = _short_runner_logits(runner, sequences)
        expected = [_one_pass_logits(model, sequence) for sequence in sequences]
    check_equal(dtype, logits, expected, rounds_inputs=_rounds_inputs(model))


def _short_sequences(model: Any, slots: int) -> list[list[int]]:
    """One or two sequences of different lengths: prompt and answer."""
    length = _SHORT_PROMPT + _SHORT_ANSWER
    first, second = _random_tokens(model, 2, length)
    if slots == 1:
        return [first]
    return [first, second[: length - 2]]


def _random_tokens(model: Any, rows: int, length: int) -> list[list[int]]:
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(1)
    tokens: list[list[int]] = torch.randint(
        0, vocabulary, (rows, length), generator=generator
    ).tolist()
    return tokens


def _one_pass_logits(model: Any, sequence: list[int]) -> torch.Tensor:
    """Of the library, in one forward pass."""
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([sequence], device=model.device), use_cache=False)
    logits: torch.Tensor = output.logits[0, -_SHORT_ANSWER - 1 :].float()
    return logits


@torch.inference_mode()
def _short_runner_logits(runner: LocalModelRunner, sequences: list[list[int]]) -> Logits:
    """Each prompt is prefilled in two chunks, the answers are decoded together."""
    slots = list(range(len(sequences)))
    give_blocks(runner, len(slots), _SHORT_PROMPT + _SHORT_ANSWER)
    prompt_lengths: list[int] = []
    first_chunks, second_chunks = [], []
    for slot, sequence in enumerate(sequences):
        length = len(sequence) - _SHORT_ANSWER
        prompt_lengths.append(length)
        first_chunks.append(PrefillChunk(slot, 0, _FIRST_CHUNK))
        second_chunks.append(PrefillChunk(slot, _FIRST_CHUNK, length - _FIRST_CHUNK))
    runner.prefill(first_chunks, _tokens_of(first_chunks, sequences), [False] * len(slots))
    logits = runner.prefill(
        second_chunks, _tokens_of(second_chunks, sequences), [True] * len(slots)
    )
    steps = [logits.float()]
    for step in range(_SHORT_ANSWER):
        positions = [length + step for length in prompt_lengths]
        newest = [sequences[slot][position] for slot, position in enumerate(positions)]
        runner.feed(torch.tensor(newest, device=runner.device))
        steps.append(runner.decode(slots, positions).float().clone())
    return list(torch.stack(steps, dim=1))


def give_blocks(runner: LocalModelRunner, slots: int, length: int) -> None:
    """The first `slots` sequences get blocks for `length` tokens each, where there are blocks."""
    if not runner.blocks:
        return
    count = blocks_for(length) * len(runner.windows)
    ranges: list[BlockRange] = []
    for slot in range(slots):
        blocks = tuple(range(slot * count, (slot + 1) * count))
        ranges.append(BlockRange(slot, 0, blocks))
    runner.set_blocks(ranges)


def _tokens_of(chunks: list[PrefillChunk], sequences: list[list[int]]) -> list[list[int]]:
    return [sequences[chunk.slot][chunk.start : chunk.end] for chunk in chunks]


# ---- the miniature, all lengths, by a runner


def _runner_logits(
    miniature: Miniature, layout: KVCacheLayout, prefill_again_at: int | None
) -> Logits:
    """Prompts are prefilled side by side in chunks, answers are decoded together. A sequence whose
    newest token is at position `prefill_again_at` is prefilled again as a whole.
    """
    attention.register()
    context = max(PROMPT_LENGTHS) + ANSWER_TOKENS
    slots = len(PROMPT_LENGTHS)
    size = CacheSize(slots, context)
    if uses_pages(miniature.model.device):
        groups = len(layout.block_groups.windows)
        size = CacheSize(slots, context, slots * groups * blocks_for(context))
    runner = LocalModelRunner(miniature.model, layout, size)
    give_blocks(runner, slots, context)
    trial = _RunnerTrial(runner, miniature.sequences)
    try:
        with (
            attention_function(miniature.model, attention.NAME),
            torch.inference_mode(),
            _any_error_unsupported(),
        ):
            trial.prefill(dict(enumerate(PROMPT_LENGTHS)))
            for step in range(1, ANSWER_TOKENS + 1):
                lengths: dict[int, int] = {}
                outgrown: dict[int, int] = {}
                for row, prompt_length in enumerate(PROMPT_LENGTHS):
                    length = prompt_length + step
                    if length - 1 == prefill_again_at:
                        outgrown[row] = length
                    else:
                        lengths[row] = length
                trial.decode(lengths)
                trial.prefill(outgrown)
    finally:
        runner.release()
    return [torch.stack(steps).float() for steps in trial.steps]


class _RunnerTrial:
    """Sequences of known tokens, each in the slot of its index. `lengths` maps a sequence to the
    number of its tokens that are computed by the call; logits after the last are kept.
    """

    def __init__(self, runner: LocalModelRunner, sequences: list[list[int]]) -> None:
        self._runner = runner
        self._sequences = sequences
        self.steps: list[list[torch.Tensor]] = [[] for _ in sequences]

    def prefill(self, lengths: dict[int, int]) -> None:
        """From the beginning, some tokens of each sequence at a time."""
        for start in range(0, max(lengths.values(), default=0), _CHUNK):
            chunks, ends_prompt, ended = [], [], {}
            for row, length in lengths.items():
                if length > start:
                    chunk = PrefillChunk(row, start, min(_CHUNK, length - start), length)
                    chunks.append(chunk)
                    ends_prompt.append(chunk.end == length)
                    if chunk.end == length:
                        ended[row] = length
            tokens = _tokens_of(chunks, self._sequences)
            self._keep(ended, self._runner.prefill(chunks, tokens, ends_prompt))

    def decode(self, lengths: dict[int, int]) -> None:
        """The newest token of each sequence."""
        positions = [length - 1 for length in lengths.values()]
        self._keep(lengths, self._runner.decode(list(lengths), positions))

    def _keep(self, lengths: dict[int, int], logits: torch.Tensor) -> None:
        following = []
        for (row, length), row_logits in zip(lengths.items(), logits, strict=True):
            self.steps[row].append(row_logits.clone())
            next_token = 0  # past the end: nothing reads it
            if length < len(self._sequences[row]):
                next_token = self._sequences[row][length]
            following.append(next_token)
        self._runner.feed(torch.tensor(following, dtype=torch.long))


# ---- a padded batch


class _ScriptedSequence:
    """Stands for a Sequence whose tokens are known."""

    def __init__(self, tokens: list[int]) -> None:
        self.ids = tokens[:-ANSWER_TOKENS]
        self.answer = tokens[-ANSWER_TOKENS:]
        self.steps: list[torch.Tensor] = []

    @property
    def finished(self) -> bool:
        return len(self.steps) > ANSWER_TOKENS

    @property
    def last_token(self) -> int:
        return self.answer[len(self.steps) - 1]


@torch.inference_mode()
def _padded_batch_logits(model: Any, sequences: list[list[int]]) -> Logits:
    """As rows come and go: some are prefilled, others join them later, and the first ones leave."""
    rows: list[Any] = [_ScriptedSequence(tokens) for tokens in sequences]
    batch = PaddedBatch(model, [])
    for newcomers in (rows[1::2], rows[0::2]):
        arriving = PaddedBatch(model, newcomers)
        logits = None
        while logits is None:
            logits = arriving.prefill(_CHUNK * len(newcomers))
        _keep(newcomers, logits)
        batch.adopt(arriving)
        for _ in range(ANSWER_TOKENS // 2):
            _step(batch)
    while batch.rows:
        _step(batch)
    return [torch.stack(row.steps).float() for row in rows]


def _step(batch: PaddedBatch) -> None:
    rows: Many[Any] = list(batch.rows)
    _keep(rows, batch.step())
    batch.remove_finished()


def _keep(rows: Many[Any], logits: torch.Tensor) -> None:
    for row, row_logits in zip(rows, logits, strict=True):
        row.steps.append(row_logits.clone())
