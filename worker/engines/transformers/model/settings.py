"""The environment variables of the engine's model rooms. Each raises EngineUnavailable for a value
that it does not know.
"""

import math
import os

from worker.engines.base import EngineUnavailable

AUTO = "auto"  # of a choice: the engine's own


def threads() -> int | None:
    """CANOPY_THREADS: the cores that a node computes on; None: torch's own choice."""
    return _positive("CANOPY_THREADS")


def gpu_nodes() -> int:
    """CANOPY_GPU_NODES: how many nodes share a GPU."""
    return _positive("CANOPY_GPU_NODES") or 1


def memory_fraction() -> float | None:
    """CANOPY_MEMORY_FRACTION: the part of a GPU's memory that this node may take, weights included;
    None: what is free.
    """
    name = "CANOPY_MEMORY_FRACTION"
    text = os.environ.get(name)
    if not text:
        return None
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise EngineUnavailable(f"{name} must be above 0 and at most 1, not {text!r}")
    return fraction


def library_attention() -> bool:
    """CANOPY_LIBRARY_ATTENTION: whether to compute every model without a runner."""
    return bool(os.environ.get("CANOPY_LIBRARY_ATTENTION"))


def whole_last_layer() -> bool:
    """CANOPY_WHOLE_LAST_LAYER: whether to compute the last layer of all tokens of a prompt."""
    return bool(os.environ.get("CANOPY_WHOLE_LAST_LAYER"))


def dependent_launch() -> bool:
    """CANOPY_DEPENDENT_LAUNCH: whether all small kernels of a GPU begin before the one before them
    has ended.
    """
    return bool(os.environ.get("CANOPY_DEPENDENT_LAUNCH"))


def precision(choices: tuple[str, ...], where: str) -> str:
    """CANOPY_PRECISION: one of `choices`, those that there are `where`."""
    return _choice("CANOPY_PRECISION", choices, where)


def kv_cache_dtype(choices: tuple[str, ...], where: str) -> str:
    """CANOPY_KV_CACHE_DTYPE: one of `choices`, those that there are `where`."""
    return _choice("CANOPY_KV_CACHE_DTYPE", choices, where)


def _choice(name: str, choices: tuple[str, ...], where: str) -> str:
    chosen = os.environ.get(name) or AUTO
    if chosen not in choices:
        raise EngineUnavailable(
            f"{name} must be one of {', '.join(choices)} {where}, not {chosen!r}"
        )
    return chosen


def _positive(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise EngineUnavailable(f"{name} must be a number from 1 up, not {text!r}")
    return int(text)
