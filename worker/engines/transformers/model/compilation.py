"""For a GPU: fewer and larger kernels, and a step that is one launch."""

import os
import sys
import time
from typing import Any

import structlog
import torch

from worker import load_status, models
from worker.engines.transformers.model import (
    dependent_launch,
    flash_attention,
    float8_linear,
    linear_op,
)
from worker.engines.transformers.model.fused_mlp import fuse_float8_mlps, fuse_mlps
from worker.engines.transformers.model.fused_qkv import fuse_qkv
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.last_layer import LastLayer, enclosing_place
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.errors import one_line

log = structlog.get_logger(__name__)

_SWITCH_INTERVAL = 0.0005  # seconds: a step must not wait for the event loop's turn to end
_MIN_RECOMPILE_LIMIT = 64


def _say(text: str) -> None:
    log.info(text)
    load_status.report(text)


def optimize(model: Any, layout: KVCacheLayout, runner: LocalModelRunner) -> None:
    """Fuses projections, compiles layers and captures graphs; without what fails here."""
    try:
        compile_model(model, layout, runner.slots)
        with torch.inference_mode():
            runner.capture_graphs(_say)
    except Exception as error:  # a compiler fails in many ways; the model runs without it
        log.warning("not compiled", reason=one_line(error))
        uncompile_layers(model, layout)
        runner.drop_graphs()  # those that were recorded: their memory is needed
        with torch.inference_mode():
            capture_graphs(runner)


def compile_model(model: Any, layout: KVCacheLayout, slots: int) -> None:
    """Fuses projections, chooses how products of up to `slots` rows are computed, and has layers
    compiled when they are first computed.
    """
    cache = models.home() / "cache"  # a restart compiles nothing
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    sys.setswitchinterval(_SWITCH_INTERVAL)
    flash_attention.choose(layout)
    if dependent_launch.use_for_compiled(model.device):
        log.info("kernels are launched early")
    fused = _join_projections(model, layout)
    _choose_products(model, slots)
    torch.cuda.empty_cache()  # joined layers left gaps, each too small for what comes
    layers = compile_layers(model, layout)
    log.info("compiling", layers=layers, fused=fused)
    load_status.report(f"compiling {layers} layers")


def _join_projections(model: Any, layout: KVCacheLayout) -> int:
    """Returns how many joined layers there are. Where memory ends, the others stay as they are."""
    fused = 0
    try:
        for module in layout.shapes:
            fused += fuse_qkv(module)
        fused += fuse_float8_mlps(model)
    except torch.OutOfMemoryError as error:
        log.warning("some projections are not joined", reason=one_line(error))
    return fused


def _choose_products(model: Any, slots: int) -> None:
    """Fuses MLPs and measures linear layers; what fails stays as it was, with torch's products."""
    # here, as a machine without a GPU may lack Triton, which they load
    from worker.engines.transformers.model import float8_tuning, linear_tuning

    began = time.monotonic()
    try:
        mlps, layers = fuse_mlps(model), linear_tuning.tune_linears(model, slots)
        layers += float8_tuning.tune(model, slots)
    except linear_tuning.PRODUCT_ERRORS as error:  # no memory, a kernel that does not run here
        log.warning("linear layers are not tuned", reason=one_line(error))
        _clear_tiles()
        return
    seconds = round(time.monotonic() - began, 1)
    log.info("linear layers are tuned", layers=layers, mlps=mlps, seconds=seconds)


def _clear_tiles() -> None:
    linear_op.clear_tiles()
    float8_linear.clear_tiles()


def capture_graphs(runner: LocalModelRunner) -> None:
    """Runs without graphs where a model's steps read a number from the device."""
    try:
        runner.capture_graphs(_say)
    except Exception as error:  # Triton's errors are no RuntimeErrors
        log.warning("decoding steps are not recorded", reason=one_line(error))
        runner.drop_graphs()


def compile_layers(model: Any, layout: KVCacheLayout) -> int:
    """Compiles the repeated layers around the attention modules, once for all of them. Returns how
    many there are.
    """
    layers = _layers(model, layout)
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(_MIN_RECOMPILE_LIMIT, limit)
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)


def uncompile_layers(model: Any, layout: KVCacheLayout) -> None:
    """Undoes `compile_layers`, and leaves all products to torch: any kernel may have failed."""
    _clear_tiles()
    flash_attention.forget()
    for layer in _layers(model, layout):
        layer._compiled_call_impl = None


def _layers(model: Any, layout: KVCacheLayout) -> list[Any]:
    """The elements of a list of layers that the attention modules belong to, each once."""
    by_id = {}
    for path, module in model.named_modules():
        if module in layout.shapes:
            place = enclosing_place(model, path)
            if place is not None:
                layer = place.get()
                compiled = layer.body if isinstance(layer, LastLayer) else layer
                by_id[id(compiled)] = compiled
    return list(by_id.values())
