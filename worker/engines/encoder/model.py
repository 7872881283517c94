"""A model that makes vectors or scores, in memory: batches of token ids in, rows out."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from broker.wire import Pooling, Task
from worker.engines.base import EngineFailed, InvalidRequest
from worker.engines.encoder.files import Layout
from worker.engines.encoder.head import Mask, pool
from worker.engines.encoder.request import Item
from worker.engines.encoder.tokens import Reader

_MODES = {"cls": "cls", "mean": "mean", "last": "lasttoken", "max": "max"}  # the wire's


class NotFinite(EngineFailed):
    """Retryable: no usable numbers for this input; the others are computed."""

    def __init__(self, item: Item) -> None:
        super().__init__(f"input[{item.index}]: the model computed NaN or infinity", isolated=True)


class PoolingModel(Protocol):
    """What the engine computes with."""

    task: Task
    model: Any
    reader: Reader

    def check(self, pooling: Pooling) -> None:
        """Raises InvalidRequest for what the model cannot do."""

    def compute(self, items: Sequence[Item]) -> list[bytes | EngineFailed]:
        """A row for each item, or why there is none. Blocks; raises what torch raises."""


class Padded:
    """A batch as tensors; texts are padded at their ends."""

    def __init__(self, items: Sequence[Item], pad: int, device: torch.device) -> None:
        longest = max(item.length for item in items)
        ids = torch.full((len(items), longest), pad)
        mask = torch.zeros((len(items), longest), dtype=torch.int64)
        types = torch.zeros_like(mask)
        for row, item in enumerate(items):
            ids[row, : item.length] = torch.tensor(item.ids)
            mask[row, : item.length] = 1
            if item.type_ids is not None:
                types[row, : item.length] = torch.tensor(item.type_ids)
        self.ids, self.mask, self.types = ids.to(device), mask.to(device), types.to(device)

    def inputs(self, *, with_types: bool) -> dict[str, Tensor]:
        """Arguments of a model."""
        inputs = {"input_ids": self.ids, "attention_mask": self.mask}
        if with_types:
            inputs["token_type_ids"] = self.types
        return inputs


class Embedder:
    """Makes a vector of each text."""

    task: Task = "embed"

    def __init__(self, model: Any, layout: Layout, reader: Reader) -> None:
        self.model = model
        self.reader = reader
        self._layout = layout
        self._layers = layout.layers.to(model.device).eval()
        self._pad = reader.tokenizer.pad_token_id or 0
        self._with_types = _has_types(model, reader.tokenizer)
        self._dimensions = self._width()

    def check(self, pooling: Pooling) -> None:
        """See the protocol."""
        if pooling.dimensions > self._dimensions:
            raise InvalidRequest(
                f"dimensions: the model's vectors have {self._dimensions}, not {pooling.dimensions}"
            )

    @torch.inference_mode()
    def compute(self, items: Sequence[Item]) -> list[bytes | EngineFailed]:
        """See the protocol."""
        batch = Padded(items, self._pad, self.model.device)
        hidden = self.model(**batch.inputs(with_types=self._with_types)).last_hidden_state.float()
        rows: list[bytes | EngineFailed] = [b""] * len(items)
        for modes, indices in self._by_modes(items).items():
            chosen = [items[index] for index in indices]
            vectors = self._layers(pool(hidden[indices], self._mask(chosen), modes)).cpu()
            for index, item, vector in zip(indices, chosen, vectors, strict=True):
                rows[index] = _row(item, self._finished(vector, item.request.pooling))
        return rows

    def _by_modes(self, items: Sequence[Item]) -> dict[tuple[str, ...], list[int]]:
        by_modes: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            mode = item.request.pooling.mode
            modes = (_MODES[mode],) if mode else self._layout.modes
            by_modes[modes].append(index)
        return by_modes

    def _mask(self, items: Sequence[Item]) -> Mask:
        device = self.model.device
        return Mask(
            torch.tensor([item.length for item in items], device=device),
            torch.tensor([item.prompt for item in items], device=device),
        )

    def _finished(self, vector: Tensor, pooling: Pooling) -> Tensor:
        """The first `dimensions` of it, at unit length unless the request or the files say no."""
        normalizes = self._layout.normalizes or pooling.dimensions > 0
        if pooling.normalize is not None:
            normalizes = pooling.normalize
        if pooling.dimensions:
            vector = vector[: pooling.dimensions]
        return nn.functional.normalize(vector, dim=-1) if normalizes else vector

    @torch.inference_mode()
    def _width(self) -> int:
        """Dimensions of its vectors."""
        hidden = torch.zeros(1, 1, self.model.config.get_text_config().hidden_size)
        hidden = hidden.to(self.model.device)
        one, none = torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        mask = Mask(one.to(hidden.device), none.to(hidden.device))
        return int(self._layers(pool(hidden, mask, self._layout.modes)).shape[-1])


class Scorer:
    """Says how well a text answers a query: a classifier with one class reads both together."""

    task: Task = "score"

    def __init__(self, model: Any, activation: nn.Module, reader: Reader) -> None:
        self.model = model
        self.reader = reader
        self._activation = activation
        self._pad = reader.tokenizer.pad_token_id or 0
        self._with_types = _has_types(model, reader.tokenizer)

    def check(self, pooling: Pooling) -> None:
        """See the protocol."""
        if pooling.dimensions:
            raise InvalidRequest("dimensions: a score has one")

    @torch.inference_mode()
    def compute(self, items: Sequence[Item]) -> list[bytes | EngineFailed]:
        """See the protocol."""
        batch = Padded(items, self._pad, self.model.device)
        logits = self.model(**batch.inputs(with_types=self._with_types)).logits.float()
        scores = self._activation(logits).cpu()
        return [_row(item, score) for item, score in zip(items, scores, strict=True)]


def _row(item: Item, vector: Tensor) -> bytes | EngineFailed:
    if not torch.isfinite(vector).all():
        return NotFinite(item)
    array = vector.contiguous().numpy()
    return bytes(array.astype("<f4", copy=False).tobytes())


def _has_types(model: Any, tokenizer: Any) -> bool:
    """Whether the model tells the two texts of a pair apart by types of tokens."""
    return (
        "token_type_ids" in tokenizer.model_input_names
        and getattr(model.config, "type_vocab_size", 0) > 1
    )
