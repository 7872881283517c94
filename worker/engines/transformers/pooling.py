"""Vectors of texts from a model that generates: the hidden states of a text's tokens, pooled.

A text is a sequence whose prompt is computed and nothing behind it. Its states come chunk by chunk,
as its prompt does beside the answers that run.
"""

import msgspec
import torch

from broker.wire import Job, Pooling
from worker.engines.base import InvalidRequest, PromptTooLong
from worker.engines.transformers.errors import NotFiniteLogits
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.text.chat_template import Prompts

_LAST, _MEAN = "last", "mean"
_CHARACTERS = 32  # of a token, at most, in a text that is cut before it is tokenized


def check(pooling: Pooling) -> None:
    """Raises InvalidRequest for what such a model does not do."""
    if pooling.mode not in ("", _LAST, _MEAN):
        raise InvalidRequest(
            f"pooling: a model that generates has {_LAST} (the default) and {_MEAN}"
        )
    if pooling.prompt_name:
        raise InvalidRequest("prompt_name: the model has no prompts of its own")


def input_job(job: Job, pooling: Pooling, index: int) -> Job:
    """A job for one of its inputs alone."""
    one = msgspec.structs.replace(pooling, inputs=(pooling.inputs[index],))
    return msgspec.structs.replace(job, pooling=one, delivered_inputs=0)


def tokenize(job: Job, pooling: Pooling, loaded: LoadedModel, prompts: Prompts) -> list[int]:
    """The tokens of the job's only input, as the model's tokenizer reads a text by itself.

    Raises InvalidRequest.
    """
    [text] = pooling.inputs
    most, keep = loaded.context - 1, pooling.truncate
    if keep is not None:
        most = most if keep < 0 else min(keep, most)
    if isinstance(text, str):
        text = pooling.prompt + text
        if keep is not None:
            text = text[: most * _CHARACTERS]
            ids: list[int] = loaded.tokenizer(text, verbose=False)["input_ids"]
        else:
            asked = msgspec.structs.replace(job, prompt=text, pooling=None, task="generate")
            ids = prompts.prepare(asked).ids
    else:
        ids = list(text)
    if keep is not None:
        ids = ids[:most]
    if not ids:
        raise InvalidRequest("input: has no tokens")
    if len(ids) > most:
        raise PromptTooLong(
            f"an input has {len(ids)} tokens, and the model reads at most {most}: shorten it, or "
            "send truncate_prompt_tokens: -1"
        )
    if max(ids) >= loaded.vocabulary:
        raise InvalidRequest(
            f"input: there is no token {max(ids)}, as this model has {loaded.vocabulary}: send the "
            "text (langchain: check_embedding_ctx_length=False)"
        )
    return ids


class PooledStates:
    """Of one text. Used by the decoding thread."""

    def __init__(self, pooling: Pooling, tokens: int) -> None:
        self._pooling = pooling
        self._tokens = tokens
        self._sum: torch.Tensor | None = None
        self._last: torch.Tensor | None = None

    def add(self, start: int, states: torch.Tensor) -> None:
        """`states` [tokens, features] of the tokens from `start` on.

        A text that lost its memory is computed again, from its beginning.
        """
        states = states.float()
        self._last = states[-1].clone()
        if self._pooling.mode == _MEAN:
            former = None if start == 0 else self._sum
            added = states.sum(dim=0)
            self._sum = added if former is None else former + added

    def vector(self) -> bytes:
        """The text's, as float32. Waits for the device. Raises EngineError."""
        pooled = self._last
        if self._pooling.mode == _MEAN and self._sum is not None:
            pooled = self._sum / self._tokens
        if pooled is None:
            raise RuntimeError("nothing was computed")
        if not torch.isfinite(pooled).all():
            raise NotFiniteLogits
        if self._pooling.dimensions > len(pooled):
            raise InvalidRequest(f"dimensions: the model's vectors have {len(pooled)}")
        if self._pooling.dimensions:
            pooled = pooled[: self._pooling.dimensions]
        if self._pooling.normalize is not False:
            pooled = torch.nn.functional.normalize(pooled, dim=0)
        return pooled.cpu().numpy().astype("<f4").tobytes()
