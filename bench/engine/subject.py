"""What is measured: a model in memory that everybody shares, or a folder that an engine divides."""

import gc
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
_KV_SHARE = 0.5  # of the free memory that rows of the chosen context take at most


class Snapshot:
    """What a model was like before anybody computed with it.

    An engine may fuse, replace or compile layers and choose another attention; the next one must
    find nothing of that. Layers that an engine replaces are kept here meanwhile.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.attention = str(model.config._attn_implementation)
        self._dicts: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for module in model.modules():
            for attributes in (vars(module), module._modules, module._parameters):
                self._dicts.append((attributes, dict(attributes)))

    def restore(self) -> None:
        for attributes, before in self._dicts:
            attributes.clear()
            attributes.update(before)
        if self._model.config._attn_implementation != self.attention:
            self._model.set_attn_implementation(self.attention)


class Subject:
    """A model whose answers are as long as they were asked for: no token ends them."""

    def __init__(self, name: str, tokenizer: Any, vocabulary: int, context: int) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.context = context  # tokens a row
        self.precision = ""  # that the engine chose on a CPU
        self.facts: dict[str, str] = {}  # for the report

    def prompts(self, seed: int) -> Prompts:
        return Prompts(self.tokenizer, self.vocabulary, self.name, seed)

    def engine(self, name: str | None, device: str, slots: int) -> Engine:
        """The transformers engine around this model, or another one, which loads what it likes."""
        if name is not None:
            return create(
                name, model=self.name, model_path=None, device=device, slots=slots, token_delay=0.0
            )
        from worker.engines.transformers.engine import TransformersEngine

        make: Callable[..., Engine] = TransformersEngine
        return make(model=self.name, model_path=None, device=device, slots=slots, loader=self.load)

    def load(self, device: str, slots: int) -> LoadedModel:
        """For the engine. Raises EngineUnavailable."""
        loaded = self._load(device, slots)
        self.context = min(self.context, loaded.context)
        self.precision = loaded.precision
        return msgspec.structs.replace(loaded, eos_token_ids=frozenset())

    def _load(self, device: str, slots: int) -> LoadedModel:
        raise NotImplementedError

    def clean_up(self) -> None:
        """Brings the model back as it came, before the next contender takes its turn."""


class SharedModel(Subject):
    """A model in memory, to be computed by several contenders one after the other."""

    def __init__(
        self, name: str, model: Any, tokenizer: Any, slots: int, context: int | None
    ) -> None:
        self.model = model
        self.reads = limit.step_reads(model)
        self._before = Snapshot(model)
        config = model.config.get_text_config()
        longest = min(_max_context(config), context or _max_context(config))
        room = int(_free_memory(model) * _KV_SHARE) // ((slots + 1) * self.reads.bytes_per_token)
        super().__init__(name, tokenizer, int(config.vocab_size), max(1, min(longest, room)))
        millions = sum(weight.numel() for weight in model.parameters()) / 1e6
        dtype = str(model.dtype).removeprefix("torch.")
        weights = f"{self.reads.weights / 1e9:.3f} GB weights"
        self.facts = {
            "model": f"{name}: {millions:,.1f} M parameters",
            "dtype, attention": f"{dtype}, {self._before.attention}",
            "a step reads": f"{weights}, {self.reads.bytes_per_token:,} bytes a token of a row",
        }

    def _load(self, device: str, slots: int) -> LoadedModel:
        import torch

        from worker.engines.transformers.model.loader import prepare_model

        if device.startswith("cuda"):
            torch.cuda.set_device(device)  # of this thread: Triton launches on the current one
        return prepare_model(self.model, self.tokenizer, slots, self.context)

    def clean_up(self) -> None:
        """Also gives memory back."""
        import torch

        self._before.restore()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


class DividedModel(Subject):
    """A model in a folder, of which no process and no device has the whole."""

    def __init__(self, folder: Path, ranks: int) -> None:
        """`ranks` processes; with one, its layers are spread over devices."""
        import transformers

        try:
            config = transformers.AutoConfig.from_pretrained(folder, **_LOCAL).get_text_config()
        except (OSError, ValueError) as error:
            raise EngineUnavailable(f"cannot load the model in {folder}: {error}") from error
        vocabulary = int(config.vocab_size)
        super().__init__(folder.name, read_tokenizer(folder), vocabulary, _max_context(config))
        self._folder = folder
        self._ranks = ranks
        how = f"divided among {ranks} processes" if ranks > 1 else "its layers over the devices"
        self.facts = {"model": f"{folder.name}: {how}"}

    def _load(self, device: str, slots: int) -> LoadedModel:
        from worker.engines.transformers.model import loader
        from worker.engines.transformers.tensor_parallel import leader

        if self._ranks > 1:
            return leader.load(self._folder, device, slots, self._ranks)
        return loader.load(self._folder, device, slots)


def find_device(name: str) -> str:
    """ "auto" is the first GPU or else the CPU, "cuda" the first GPU."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda:0" if name == "cuda" else name


def random_weights(shape: str, device: str, slots: int, context: int | None) -> SharedModel:
    config = shapes.config(shape)
    model = shapes.build(config, device, _dtype(device))
    return SharedModel(shape, model, shapes.tokenizer(config.vocab_size), slots, context)


def from_folder(folder: Path, device: str, slots: int, context: int | None) -> SharedModel:
    """A model from a folder, as a node loads it. Raises EngineUnavailable."""
    import transformers

    tokenizer = read_tokenizer(folder)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=_dtype(device), device_map=device, use_safetensors=True, **_LOCAL
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineUnavailable(f"cannot load the model in {folder}: {error}") from error
    return SharedModel(folder.name, model.eval(), tokenizer, slots, context)


def read_tokenizer(folder: Path) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, **_LOCAL)
    except (OSError, ValueError) as error:
        raise EngineUnavailable(f"no tokenizer in {folder}: {error}") from error


def _dtype(device: str) -> Any:
    import torch

    return torch.float32 if device == "cpu" else torch.bfloat16


def _free_memory(model: Any) -> int:
    import psutil
    import torch

    if model.device.type == "cuda":
        return int(torch.cuda.mem_get_info(model.device)[0])
    return int(psutil.virtual_memory().available)


def _max_context(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or 8192)
