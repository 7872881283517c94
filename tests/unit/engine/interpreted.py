"""Triton kernels as Python runs them, for a machine without a GPU."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_MODEL = "worker.engines.transformers.model"


@contextmanager
def interpreted(name: str, *kernels: str, room: str = _MODEL) -> Iterator[Any]:
    """A copy of the module `name` of `room`, whose files `kernels` the interpreter runs.

    Triton reads TRITON_INTERPRET when it is imported, and torch has imported it by now. So it is
    imported again meanwhile, and the first one is put back afterwards. In another process torch
    would have to be imported, too, which takes as long as all of these tests.
    """
    files = [f"{room}.{file}" for file in kernels]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for loaded in _loaded_of_triton(files):
            patch.delitem(sys.modules, loaded)
        module = _own_copy(f"{room}.{name}")
        builder = sys.modules["triton.runtime.interpreter"].InterpreterBuilder
        language = sys.modules["triton.language"]
        patch.setattr(builder, "create_dot", _dot(builder.create_dot, language))
        yield module
        for loaded in _loaded_of_triton(files):
            del sys.modules[loaded]


def _loaded_of_triton(files: list[str]) -> list[str]:
    """And the kernels. Without native modules, which a process can load only once."""
    names = [name for name in sys.modules if name.partition(".")[0] == "triton" or name in files]
    return [name for name in names if not name.startswith("triton._C")]


def _own_copy(name: str) -> Any:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _dot(plainly: Any, tl: Any) -> Any:
    """numpy has no bfloat16: the interpreter would multiply the bits as integers."""

    def dot(self: Any, left: Any, right: Any, *more: Any) -> Any:
        factors = [
            self.cast_impl(it, tl.float32) if it.dtype.scalar == tl.bfloat16 else it
            for it in (left, right)
        ]
        return plainly(self, *factors, *more)

    return dot
