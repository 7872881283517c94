"""What an exception means for a job: another node may succeed, or no node will; and who else is
concerned.
"""

import torch

from worker.engines.base import EngineError
from worker.errors import one_line

# torch on a CPU says it in words only
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def model_failed(error: Exception) -> EngineError:
    """Of a step: its jobs may succeed on another node, or on this one when its engine was started
    again.
    """
    if isinstance(error, EngineError):
        return error
    what = "out of memory" if _no_memory(error) else "the model failed"
    return EngineError("engine", f"{what}: {one_line(error)}", retryable=True)


def row_failed(error: Exception) -> EngineError:
    """Of work for one sequence alone, which harms no other one. The same job fails in the same way
    wherever it runs, unless memory was short; a device in error is no sequence's own.
    """
    if isinstance(error, EngineError) or _device_broken(error):
        return model_failed(error)
    if _no_memory(error):
        return EngineError(
            "engine", f"out of memory: {one_line(error)}", retryable=True, alone=True
        )
    return EngineError("internal", f"computing this answer failed: {_named(error)}", alone=True)


def thread_died(name: str, error: BaseException) -> EngineError:
    """Of a thread that everything needs: one of its jobs may be the cause, so it counts against all
    of them.
    """
    return EngineError("engine", f"the {name} thread died: {_named(error)}", retryable=True)


def unreadable(error: Exception) -> EngineError:
    """Of turning one job's text into tokens: the same on every node, and no fault of the engine."""
    if isinstance(error, EngineError) or _no_memory(error):
        return model_failed(error)
    return EngineError("invalid", f"the prompt cannot be read: {one_line(error)}")


def _named(error: BaseException) -> str:
    """With its kind: the text of an exception that nobody expected often says little."""
    return f"{type(error).__name__}: {one_line(error)}"


def _no_memory(error: Exception) -> bool:
    memory = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, memory) or (
        isinstance(error, RuntimeError) and any(it in str(error) for it in _NO_MEMORY)
    )


def _device_broken(error: Exception) -> bool:
    """CUDA reports an error of any kernel at whatever call comes next, and at every one after it."""
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error)
    )
