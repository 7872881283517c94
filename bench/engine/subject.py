"""What is measured: one model object in memory, which the engine and everything beside it share, or a folder that the
engine reads for itself.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench.engine import limit, shapes
from bench.engine.prompts import Prompts
from worker.engines import create
from worker.engines.base import Engine, EngineUnavailable
from worker.engines.transformers.model.loaded import LoadedModel

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_SHARE = 0.5  # of the free memory that rows of the chosen context take at most


class Before:
    """What a model was like before anybody computed with it.

    An engine may join or compile its layers, choose another attention or keep tensors in its modules; the next one must
    find nothing of that. Layers that an engine replaces are kept here meanwhile.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.attention = str(model.config._attn_implementation)
        self._modules = [
            (module, dict(vars(module)), dict(module._modules), dict(module._parameters))
            for module in model.modules()
        ]

    def restore(self) -> None:
        """As it was."""
        for module, attributes, children, weights in self._modules:
            _refill(vars(module), attributes)
            _refill(module._modules, children)
            _refill(module._parameters, weights)
        if self._model.config._attn_implementation != self.attention:
            self._model.set_attn_implementation(self.attention)


def _refill(now: dict[str, Any], before: dict[str, Any]) -> None:
    now.clear()
    now.update(before)


class Subject(ABC):
    """A model without end tokens, so that every answer is as long as it was asked for."""

    def __init__(self, name: str, tokenizer: Any, vocabulary: int, context: int) -> None:
        """`context`: tokens a row."""
        self.name = name
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.context = context
        self.precision = ""  # that the engine chose on a CPU

    @property
    @abstractmethod
    def facts(self) -> list[tuple[str, str]]:
        """What a report says of it."""

    def prompts(self, seed: int) -> Prompts:
        """Raises NoPrompt."""
        return Prompts(self.tokenizer, self.vocabulary, self.name, seed)

    def engine(self, path: str | None, device: str, slots: int) -> Engine:
        """The transformers engine around this model, or another one called by its name, which loads what it likes."""
        if path is not None:
            return create(
                path, model=self.name, model_path=None, device=device, slots=slots, token_delay=0.0
            )
        from worker.engines.transformers.engine import TransformersEngine

        make: Callable[..., Engine] = TransformersEngine
        return make(model=self.name, model_path=None, device=device, slots=slots, loader=self.load)

    def load(self, device: str, slots: int) -> LoadedModel:
        """What the engine computes with; nothing of it is kept here. Raises EngineUnavailable."""
        loaded = self._loaded(device, slots)
        self.context = min(self.context, loaded.context)
        self.precision = loaded.precision
        return msgspec.structs.replace(loaded, eos_token_ids=frozenset())

    @abstractmethod
    def _loaded(self, device: str, slots: int) -> LoadedModel:
        """With the model's own end tokens. Raises EngineUnavailable."""

    @abstractmethod
    def clean_up(self) -> None:
        """The model as it came, and memory given back, before the next one takes its turn."""


class Shared(Subject):
    """A model in memory, to be computed in many ways, one after the other."""

    def __init__(
        self, name: str, model: Any, tokenizer: Any, slots: int, context: int | None
    ) -> None:
        """`context`: tokens a row, if not what the model and the memory allow."""
        self.model = model
        self.reads = limit.reads(model)
        self.before = Before(model)
        longest = _context(model, slots, context, self.reads.bytes_per_token)
        super().__init__(name, tokenizer, int(model.config.get_text_config().vocab_size), longest)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What a report says of it."""
        millions = sum(each.numel() for each in self.model.parameters()) / 1e6
        reads = f"{self.reads.weights / 1e9:.3f} GB weights, {self.reads.bytes_per_token:,} bytes a token of a row"
        return [
            ("model", f"{self.name}: {millions:,.1f} M parameters"),
            (
                "dtype, attention",
                f"{str(self.model.dtype).removeprefix('torch.')}, {self.before.attention}",
            ),
            ("a step reads", reads),
        ]

    def _loaded(self, device: str, slots: int) -> LoadedModel:
        import torch

        from worker.engines.transformers.model.loader import prepare_model

        if device.startswith("cuda"):
            torch.cuda.set_device(
                device
            )  # of this thread, as a node does: Triton launches on the current one
        return prepare_model(self.model, self.tokenizer, slots, self.context)

    def clean_up(self) -> None:
        """As it came."""
        import torch

        self.before.restore()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


class Divided(Subject):
    """A model in a folder, of which no process and no device has the whole: nothing else can be computed with it."""

    def __init__(self, folder: Path, ranks: int) -> None:
        """`ranks` processes; by one its layers are spread over the devices. Raises EngineUnavailable."""
        import transformers

        try:
            config = transformers.AutoConfig.from_pretrained(folder, **_LOCAL).get_text_config()
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **_LOCAL)
        except (OSError, ValueError) as error:
            raise EngineUnavailable(f"cannot load the model in {folder}: {error}") from error
        super().__init__(folder.name, tokenizer, int(config.vocab_size), _longest(config))
        self._folder = folder
        self._ranks = ranks

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What a report says of it."""
        how = (
            f"divided among {self._ranks} processes"
            if self._ranks > 1
            else "its layers spread over the devices"
        )
        return [("model", f"{self.name}: {how}")]

    def _loaded(self, device: str, slots: int) -> LoadedModel:
        from worker.engines.transformers.model.loader import load
        from worker.engines.transformers.tensor_parallel import leader as parallel

        if self._ranks > 1:
            return parallel.load(self._folder, device, slots, self._ranks)
        return load(self._folder, device, slots)

    def clean_up(self) -> None:
        """Nothing of it is here: the engine ends what it has started."""


def find_device(name: str) -> str:
    """The device called `name`; "auto" is the first GPU or else the CPU, "cuda" the first GPU."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda:0" if name == "cuda" else name


def random_weights(shape: str, device: str, slots: int, context: int | None) -> Shared:
    """A model of a known shape."""
    config = shapes.config(shape)
    model = shapes.build(config, device, _dtype(device))
    return Shared(shape, model, shapes.tokenizer(config.vocab_size), slots, context)


def from_folder(folder: Path, device: str, slots: int, context: int | None) -> Shared:
    """A model from a folder, as a node loads it. Raises EngineUnavailable."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **_LOCAL)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=_dtype(device), device_map=device, use_safetensors=True, **_LOCAL
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineUnavailable(f"cannot load the model in {folder}: {error}") from error
    return Shared(folder.name, model.eval(), tokenizer, slots, context)


def _dtype(device: str) -> Any:
    import torch

    return torch.float32 if device == "cpu" else torch.bfloat16


def _context(model: Any, slots: int, asked: int | None, bytes_per_token: int) -> int:
    """What is asked for, or the model's own context; less where full rows would not fit into their share of memory."""
    import psutil
    import torch

    longest = _longest(model.config.get_text_config())
    cuda = model.device.type == "cuda"
    free = torch.cuda.mem_get_info(model.device)[0] if cuda else psutil.virtual_memory().available
    return max(
        1, min(longest, asked or longest, int(free * _SHARE) // ((slots + 1) * bytes_per_token))
    )


def _longest(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or 8192)
