"""What an exception means for the job it happened to, and for the sequences beside it."""

import torch

from worker.engines.base import AnswerFailed, EngineError, EngineFailed, InvalidRequest
from worker.errors import one_line

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


class ModelFailed(EngineFailed):
    """Retryable: a forward pass raised."""


class OutOfMemory(ModelFailed):
    """Retryable: another node, or this one with fewer runs, may have the memory."""


class ThreadDied(EngineFailed):
    """Retryable: a thread that every run needs has ended, and any of them may be the cause."""

    def __init__(self, name: str, error: BaseException) -> None:
        super().__init__(f"the {name} thread died: {_with_type(error)}")


class NotFiniteLogits(EngineFailed):
    """Retryable: the model computed no usable logits for this sequence; the others work on."""

    def __init__(self) -> None:
        super().__init__("the model computed NaN or infinite logits", isolated=True)


def step_error(error: Exception) -> EngineError:
    """Of a forward pass: its jobs may succeed on another node, or after a restart."""
    if isinstance(error, EngineError):
        return error
    if _is_out_of_memory(error):
        return OutOfMemory(f"out of memory: {one_line(error)}")
    return ModelFailed(f"the model failed: {one_line(error)}")


def sequence_error(error: Exception) -> EngineError:
    """Of work for one sequence, which harms no other.

    The same job would fail in the same way on every node, unless memory was short. A device in
    error is not one sequence's fault, though.
    """
    if isinstance(error, EngineError) or _is_device_error(error):
        return step_error(error)
    if _is_out_of_memory(error):
        return OutOfMemory(f"out of memory: {one_line(error)}", isolated=True)
    return AnswerFailed(f"computing this answer failed: {_with_type(error)}")


def prompt_error(error: Exception) -> EngineError:
    """Of turning a job's text into tokens: the same on every node, and no fault of the engine."""
    if isinstance(error, EngineError) or _is_out_of_memory(error):
        return step_error(error)
    return InvalidRequest(f"the prompt cannot be read: {one_line(error)}")


def _with_type(error: BaseException) -> str:
    """With its type: the message of an unexpected exception often says little."""
    return f"{type(error).__name__}: {one_line(error)}"


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch on a CPU raises a plain RuntimeError
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def _is_device_error(error: Exception) -> bool:
    """CUDA reports a kernel's error at whatever call comes next, and at every one after it."""
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)
