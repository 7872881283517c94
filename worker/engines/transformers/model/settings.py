"""The environment variables of the engine's model rooms. Each raises EngineUnavailable for a value
that it does not know.
"""

import os

from worker.engines.base import EngineUnavailable


def threads() -> int | None:
    """CANOPY_THREADS: the cores that a node computes on; None: torch's own choice."""
    return _positive("CANOPY_THREADS")


def gpu_nodes() -> int:
    """CANOPY_GPU_NODES: how many nodes share a GPU."""
    return _positive("CANOPY_GPU_NODES") or 1


def library_attention() -> bool:
    """CANOPY_LIBRARY_ATTENTION: whether to compute every model without a runner."""
    return bool(os.environ.get("CANOPY_LIBRARY_ATTENTION"))


def precision(choices: tuple[str, ...], default: str) -> str:
    """CANOPY_PRECISION: one of `choices`."""
    chosen = os.environ.get("CANOPY_PRECISION") or default
    if chosen not in choices:
        raise EngineUnavailable(
            f"CANOPY_PRECISION must be one of {', '.join(choices)}, not {chosen!r}"
        )
    return chosen


def _positive(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise EngineUnavailable(f"{name} must be a number from 1 up, not {text!r}")
    return int(text)
