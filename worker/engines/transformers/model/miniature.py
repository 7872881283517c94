"""A miniature of a model: the same class with random weights and a config whose windows, chunks and
limits are a few tokens wide (`shrunk_config`).

A mask that begins to matter after 4,096 tokens cannot be seen with a short prompt, and a long one
through a large model takes minutes. Through the miniature, prompts below, at and beyond each limit
take a fraction of a second.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from worker.engines.transformers.fallback.sequential import GenerateSteps
from worker.engines.transformers.model.errors import UnsupportedModel
from worker.engines.transformers.model.rope import RopeLimit, choose_by_sequence
from worker.engines.transformers.model.shrunk_config import shrunk
from worker.errors import one_line

PROMPT_LENGTHS = (4, 13, 33)  # below every limit, across one by its answer, beyond all of them
ANSWER_TOKENS = 6
UNTESTED = "its behaviour beyond its windows cannot be tested"
_WEIGHT_DEVIATION = 0.12  # large enough that what a token sees decides what comes next


class Miniature:
    """Built when it is first needed, with the library's own answers to compare with."""

    def __init__(self, model: Any) -> None:
        self._large = model

    @cached_property
    def model(self) -> Any:
        """Raises UnsupportedModel if the architecture cannot be shrunk."""
        with torch.random.fork_rng(devices=[]), _any_error_untested():
            torch.manual_seed(11)
            return _build(self._large)

    @cached_property
    def rope_limit(self) -> RopeLimit | None:
        """See `rope`."""
        return choose_by_sequence(self.model)

    @cached_property
    def sequences(self) -> list[list[int]]:
        """Prompts of PROMPT_LENGTHS, each with ANSWER_TOKENS more."""
        return random_sequences(self.model, PROMPT_LENGTHS, ANSWER_TOKENS)

    @cached_property
    def answers(self) -> list[torch.Tensor]:
        """The library's logits of each sequence; see `library_logits`. Raises UnsupportedModel."""
        with _any_error_untested():
            return [
                library_logits(self.model, sequence, ANSWER_TOKENS) for sequence in self.sequences
            ]


def random_sequences(model: Any, prompt_lengths: Many[int], more: int) -> list[list[int]]:
    """A prompt of each length, with `more` tokens behind it."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(3, vocabulary, (length + more,), generator=generator).tolist()
        for length in prompt_lengths
    ]


@torch.inference_mode()
def library_logits(model: Any, sequence: list[int], answer_tokens: int) -> torch.Tensor:
    """By the steps of the library's `generate`: logits [1 + answer_tokens, vocabulary] after the
    prompt and after each token of the answer.
    """
    steps = GenerateSteps(model, sequence[:-answer_tokens])
    logits = [steps.prefill()]
    for token in sequence[-answer_tokens:]:
        logits.append(steps.step(token))
    return torch.stack(logits).float()


@contextmanager
def _any_error_untested() -> Iterator[None]:
    """What cannot be tested is not relied upon; a config may have any condition."""
    try:
        yield
    except Exception as error:
        raise UnsupportedModel(f"{UNTESTED}: {one_line(error)}") from error


def _build(model: Any) -> Any:
    miniature = type(model)(shrunk(model.config)).float().eval()
    with torch.no_grad():
        for parameter in miniature.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, _WEIGHT_DEVIATION)
    return miniature
