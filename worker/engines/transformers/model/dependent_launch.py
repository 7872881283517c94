"""Programmatic dependent launch: the next kernel's programs are on the GPU, and wait there, before
the last one of this kernel has ended, so that no launch stands between two short kernels.

A kernel launched so may begin before what it reads is written. It waits at its very beginning, and
lets its own dependents begin only then: so whoever begins knows that all kernels but the one right
before it have ended. Hopper and later; https://docs.nvidia.com/cuda/cuda-c-programming-guide/
"""

from functools import cache
from typing import Any

import torch

from worker.engines.transformers.model import settings

_HOPPER = 9  # its compute capability


@cache
def is_supported(device: torch.device) -> bool:
    """Whether kernels on `device` can be launched so."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= _HOPPER


@cache
def launch_options(device: torch.device) -> dict[str, Any]:
    """The kernel's constant, and Triton's option where the operator asks for it."""
    if settings.dependent_launch() and is_supported(device):
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


def use_for_compiled(device: torch.device) -> bool:
    """Has torch.compile launch its kernels so, too, where the operator asks for it. Returns whether
    it does from now on.
    """
    if not launch_options(device)["PDL"]:
        return False
    compiler = compiler_settings()
    known = hasattr(compiler, "enable_pdl")
    if known:
        compiler.enable_pdl = True
    return known


def compiler_settings() -> Any:
    """Of the kernels that torch.compile writes."""
    import torch._inductor.config as inductor  # here: it loads the compiler

    return inductor.triton
