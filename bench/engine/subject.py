"""What is measured: a model in memory, which several contenders compute one after the other."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bench.engine import shapes
from worker.engines.base import Engine, EngineUnavailable
from worker.models import installed

if TYPE_CHECKING:  # importing it takes seconds, which `--help` has no use for
    from worker.engines.transformers.model.loaded import LoadedModel


@dataclass
class Subject:
    """A model whose answers are as long as requested: no token ends them."""

    name: str
    tokenizer: Any
    model: Any
    context: int | None  # tokens a slot at most; None: what the memory allows
    precision: str = ""  # that the engine chose on a CPU

    def load(self, device: str, slots: int) -> "LoadedModel":
        """For the engine. Raises EngineUnavailable."""
        import torch

        from worker.engines.transformers.model.loader import prepare_model

        if self.model.device.type == "cuda":
            torch.cuda.set_device(self.model.device)  # of this thread: Triton launches on it
        loaded = prepare_model(self.model, self.tokenizer, slots, self.context)
        self.precision = loaded.precision
        return msgspec.structs.replace(loaded, eos_token_ids=frozenset())


def random_weights(shape: str, device: str, context: int | None) -> Subject:
    import torch

    config = shapes.config(shape)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = shapes.build(config, device, dtype)
    return Subject(shape, shapes.tokenizer(config.vocab_size), model, context)


def from_folder(folder: Path, device: str, context: int | None) -> Subject:
    """A model from a folder, as a node loads it. Raises EngineUnavailable."""
    import torch

    from worker.engines.transformers.model import loader

    loader.check_folder(folder)
    try:
        place = torch.device(device)
        config = loader.load_config(folder, place)
        model = loader.load_weights(folder, place, config, device_map=device)
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineUnavailable(f"cannot load the model in {folder}: {error}") from error
    return Subject(folder.name, loader.load_tokenizer(folder), model, context)


def tokenizer(model: str | None, shape: str | None) -> Any:
    """Of a prepared model, or of a shape."""
    from worker.engines.transformers.model import loader

    if model is None:
        return shapes.tokenizer(shapes.config(str(shape)).vocab_size)
    return loader.load_tokenizer(installed(model))


def create(
    *, model: str, model_path: str | None, device: str, slots: int, token_delay: float
) -> Engine:
    """For nodes: `--engine bench.engine.subject --model SHAPE` makes random weights."""
    # writing 16 GB to a disk and reading them again takes many minutes

    def load(place: str, rows: int) -> "LoadedModel":
        return random_weights(model, place, None).load(place, rows)

    return engine(model, device, slots, load)


def engine(name: str, device: str, slots: int, load: "Callable[[str, int], LoadedModel]") -> Engine:
    """The transformers engine around a model."""
    from worker.engines.transformers.engine import TransformersEngine

    make: Callable[..., Engine] = TransformersEngine
    return make(model=name, model_path=None, device=device, slots=slots, loader=load)
