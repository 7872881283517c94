"""What is measured: one model object in memory, which the engine and everything beside it share."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.engine import limit, shapes
from bench.engine.prompts import Prompts
from worker.engines import create
from worker.engines.base import Engine
from worker.engines.loaded import Loaded

_CPU_PREFILL, _GPU_PREFILL = 256, 2048  # tokens, as `worker.engines.loading` has it


class Before:
    """What a model was like before anybody computed with it.

    An engine may compile its blocks, choose another attention or keep tensors in its modules; the next one must find
    nothing of that.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.attention = str(model.config._attn_implementation)
        self._names = {module: frozenset(vars(module)) for module in model.modules()}

    def restore(self) -> None:
        """As it was."""
        if self._model.config._attn_implementation != self.attention:
            self._model.set_attn_implementation(self.attention)
        for module, names in self._names.items():
            for name in vars(module).keys() - names:
                del vars(module)[name]


@dataclass(frozen=True)
class Subject:
    """A model without end tokens, so that every answer is as long as it was asked for."""

    name: str
    loaded: Loaded
    reads: limit.Reads
    before: "Before" = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "before", Before(self.loaded.model))

    @property
    def model(self) -> Any:
        """The only copy there is."""
        return self.loaded.model

    def prompts(self, seed: int) -> Prompts:
        """Raises NoPrompt."""
        return Prompts(self.loaded.tokenizer, self.loaded.vocabulary, self.name, seed)

    def engine(self, path: str | None, device: str, slots: int) -> Engine:
        """The transformers engine around this model, or another one called by its name, which loads what it likes."""
        if path is not None:
            return create(path, model=self.name, model_path=None, device=device, slots=slots, token_delay=0.0)
        from worker.engines.transformers import TransformersEngine

        def loader(device: str, slots: int) -> Loaded:
            return self.loaded

        make: Callable[..., Engine] = TransformersEngine
        return make(model=self.name, model_path=None, device=device, slots=slots, loader=loader)

    def clean_up(self) -> None:
        """The model as it came, and memory given back, before the next one takes its turn."""
        import torch

        self.before.restore()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def find_device(name: str) -> str:
    """The device called `name`; "auto" is the first GPU or else the CPU, "cuda" the first GPU."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda:0" if name == "cuda" else name


def random_weights(shape: str, device: str, slots: int, context: int | None) -> Subject:
    """A model of a known shape. `context`: tokens a row, or as many as the engine's loader would choose."""
    import torch

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    config = shapes.config(shape)
    model = shapes.build(config, device, dtype)
    reads = limit.reads(model)
    loaded = Loaded(
        model=model,
        tokenizer=shapes.tokenizer(config.vocab_size),
        ends=frozenset(),
        context=_context(config, context, device, slots, reads.bytes_per_token),
        vocabulary=config.vocab_size,
        prefill_tokens=_CPU_PREFILL if device == "cpu" else _GPU_PREFILL,
    )
    return Subject(shape, loaded, reads)


def from_folder(folder: Path, device: str, slots: int, context: int | None) -> Subject:
    """A model as a node loads it, but for its end tokens. Raises EngineUnavailable."""
    import msgspec

    from worker.engines.loading import load

    loaded = load(folder, device, slots)
    shorter = min(context or loaded.context, loaded.context)
    loaded = msgspec.structs.replace(loaded, ends=frozenset(), context=shorter)
    return Subject(folder.name, loaded, limit.reads(loaded.model))


def _context(config: Any, asked: int | None, device: str, slots: int, bytes_per_token: int) -> int:
    """The model's own context, or what leaves half of the free memory when all slots are full."""
    import psutil
    import torch

    longest = int(config.max_position_embeddings)
    if asked is not None:
        return min(asked, longest)
    free = torch.cuda.mem_get_info(device)[0] if device != "cpu" else psutil.virtual_memory().available
    return max(1, min(longest, free // 2 // (slots * bytes_per_token)))
