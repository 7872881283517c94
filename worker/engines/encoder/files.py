"""What a folder's files say about pooling, prompts and lengths: the sentence-transformers library's
files where there are any, that library's defaults otherwise.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from worker.engines.base import EngineUnavailable
from worker.engines.encoder.head import Dense, Normalize, pooling_modes
from worker.engines.tasks import MODULES_FILE, read_json

_TRANSFORMER, _POOLING, _DENSE, _NORMALIZE = "Transformer", "Pooling", "Dense", "Normalize"
_NOTHING = frozenset(["Dropout"])  # modules that do nothing outside training


@dataclass(frozen=True, slots=True)
class Layout:
    """`transformer`: the folder with the weights; `layers`: behind the pooling, in their order;
    `normalizes`: to unit length, at last.
    """

    transformer: Path
    modes: tuple[str, ...]
    layers: nn.Sequential
    normalizes: bool
    pools_prompt: bool = True
    longest: int | None = None  # tokens of an input
    lower: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str = ""


def read(folder: Path, *, causal: bool) -> Layout:
    """`causal`: the model's tokens see only those before them, so that only the last one has seen
    the whole text. Raises EngineUnavailable.
    """
    modules = read_json(folder / MODULES_FILE)
    if not isinstance(modules, list):
        modes = ("lasttoken",) if causal else ("mean",)
        return Layout(folder, modes, nn.Sequential(), normalizes=True)
    try:
        return _from_modules(folder, modules)
    except (KeyError, TypeError, AttributeError, ValueError, OSError, RuntimeError) as error:
        raise EngineUnavailable(
            f"{folder / MODULES_FILE} cannot be followed: {type(error).__name__}: {error}"
        ) from error


def _from_modules(folder: Path, modules: list[dict[str, Any]]) -> Layout:
    transformer = folder
    pooling: dict[str, Any] = {}
    layers: list[nn.Module] = []
    for module in modules:
        kind = str(module["type"]).rpartition(".")[2]
        inside = _inside(folder, str(module["path"]))
        if kind == _TRANSFORMER:
            transformer = inside
        elif kind == _POOLING:
            pooling = read_json(inside / "config.json") or {}
        elif kind == _DENSE:
            layers.append(_dense(inside))
        elif kind == _NORMALIZE:
            layers.append(Normalize())
        elif kind not in _NOTHING:
            raise EngineUnavailable(f"{folder}: modules of the kind {kind!r} are not known here")
    normalizes = bool(layers) and isinstance(layers[-1], Normalize)
    prompts, default = _prompts(folder)
    longest, lower = _transformer_settings(transformer)
    return Layout(
        transformer=transformer,
        modes=pooling_modes(pooling),
        layers=nn.Sequential(*(layers[:-1] if normalizes else layers)),
        normalizes=normalizes,
        pools_prompt=bool(pooling.get("include_prompt", True)),
        longest=longest,
        lower=lower,
        prompts=prompts,
        default_prompt=default,
    )


def _inside(folder: Path, path: str) -> Path:
    """Raises EngineUnavailable for a path that leads out of the folder."""
    inside = (folder / path).resolve()
    if not inside.is_relative_to(folder.resolve()):
        raise EngineUnavailable(f"{folder / MODULES_FILE} names a path outside: {path[:100]!r}")
    return inside


def _dense(folder: Path) -> Dense:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise EngineUnavailable(
            f"{folder} has no model.safetensors (other weight formats can run code and are not "
            "loaded)"
        )
    return Dense(read_json(folder / "config.json"), load_file(weights))


def _prompts(folder: Path) -> tuple[dict[str, str], str]:
    """All by name, and the one that is put before texts without being asked for."""
    config = read_json(folder / "config_sentence_transformers.json")
    if not isinstance(config, dict):
        return {}, ""
    prompts = {str(name): str(text) for name, text in (config.get("prompts") or {}).items()}
    return prompts, prompts.get(str(config.get("default_prompt_name")), "")


def _transformer_settings(folder: Path) -> tuple[int | None, bool]:
    """The longest input, and whether texts are read in lower case."""
    for file in sorted(folder.glob("sentence_*_config.json")):
        config = read_json(file)
        if isinstance(config, dict):
            longest = config.get("max_seq_length")
            return (longest if isinstance(longest, int) else None), bool(
                config.get("do_lower_case")
            )
    return None, False
