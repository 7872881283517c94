"""What is measured: one model object in memory, which the engine and everything beside it share."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench.engine import limit, shapes
from bench.engine.prompts import Prompts
from worker.engines import create
from worker.engines.base import Engine, EngineUnavailable
from worker.engines.loaded import Loaded

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
            (module, dict(vars(module)), dict(module._modules), dict(module._parameters)) for module in model.modules()
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


class Subject:
    """A model without end tokens, so that every answer is as long as it was asked for."""

    def __init__(self, name: str, model: Any, tokenizer: Any, slots: int, context: int | None) -> None:
        """`context`: tokens a row, if not what the model and the memory allow."""
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.precision = ""  # that the engine chose on a CPU
        self.reads = limit.reads(model)
        self.before = Before(model)
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.context = _context(model, slots, context, self.reads.bytes_per_token)

    def prompts(self, seed: int) -> Prompts:
        """Raises NoPrompt."""
        return Prompts(self.tokenizer, self.vocabulary, self.name, seed)

    def engine(self, path: str | None, device: str, slots: int) -> Engine:
        """The transformers engine around this model, or another one called by its name, which loads what it likes."""
        if path is not None:
            return create(path, model=self.name, model_path=None, device=device, slots=slots, token_delay=0.0)
        from worker.engines.transformers import TransformersEngine

        make: Callable[..., Engine] = TransformersEngine
        return make(model=self.name, model_path=None, device=device, slots=slots, loader=self.load)

    def load(self, device: str, slots: int) -> Loaded:
        """What the engine computes with; nothing of it is kept here. Raises EngineUnavailable."""
        import torch

        from worker.engines.loading import ready

        if device.startswith("cuda"):
            torch.cuda.set_device(device)  # of this thread, as a node does: Triton launches on the current one
        loaded = ready(self.model, self.tokenizer, slots, self.context)
        self.context = min(self.context, loaded.context)
        self.precision = loaded.precision
        return msgspec.structs.replace(loaded, ends=frozenset())

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
    """A model of a known shape."""
    config = shapes.config(shape)
    model = shapes.build(config, device, _dtype(device))
    return Subject(shape, model, shapes.tokenizer(config.vocab_size), slots, context)


def from_folder(folder: Path, device: str, slots: int, context: int | None) -> Subject:
    """A model from a folder, as a node loads it. Raises EngineUnavailable."""
    import transformers

    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=_dtype(device), device_map=device, use_safetensors=True, **local
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineUnavailable(f"cannot load the model in {folder}: {error}") from error
    return Subject(folder.name, model.eval(), tokenizer, slots, context)


def _dtype(device: str) -> Any:
    import torch

    return torch.float32 if device == "cpu" else torch.bfloat16


def _context(model: Any, slots: int, asked: int | None, bytes_per_token: int) -> int:
    """What is asked for, or the model's own context; less where full rows would not fit into their share of memory."""
    import psutil
    import torch

    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 8192)
    cuda = model.device.type == "cuda"
    free = torch.cuda.mem_get_info(model.device)[0] if cuda else psutil.virtual_memory().available
    return max(1, min(longest, asked or longest, int(free * _SHARE) // ((slots + 1) * bytes_per_token)))
