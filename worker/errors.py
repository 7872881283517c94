"""Errors that end a node or its preparation. `retryable`: starting it again may help."""

from typing import ClassVar


class WorkerError(Exception):
    """The operator is to be told; the text says what is wrong and what to do."""

    retryable: ClassVar[bool] = False


class BadSettings(WorkerError):
    """The operator's fault: an argument or environment variable that cannot be used."""


class WrongModel(WorkerError):
    """The operator's fault: the parent refuses this node, which serves another model."""


class EngineStuck(WorkerError):
    """The engine's fault: its thread hangs in a step. Only a new process can serve again."""

    retryable = True


class ModelError(WorkerError):
    """The operator's fault, or the hub's: a model cannot be prepared. One line says what to do."""


def one_line(error: BaseException) -> str:
    """The first line of the error's text, or its class: some texts are pages, others empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
