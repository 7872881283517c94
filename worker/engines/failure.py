"""What an exception means for a job: another node may succeed, or no node will."""

import torch

from worker.engines.base import EngineError
from worker.errors import one_line

_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")  # torch on a CPU says it in words only


def model_failed(error: Exception) -> EngineError:
    """Of a step: its jobs may succeed on another node, or on this one when its engine was started again."""
    if isinstance(error, EngineError):
        return error
    what = "out of memory" if _no_memory(error) else "the model failed"
    return EngineError("engine", f"{what}: {one_line(error)}", retryable=True)


def unreadable(error: Exception) -> EngineError:
    """Of turning one job's text into tokens: the same on every node, and no fault of the engine."""
    if isinstance(error, EngineError) or _no_memory(error):
        return model_failed(error)
    return EngineError("invalid", f"the prompt cannot be read: {one_line(error)}")


def _no_memory(error: Exception) -> bool:
    memory = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, memory) or (isinstance(error, RuntimeError) and any(it in str(error) for it in _NO_MEMORY))
