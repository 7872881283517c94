"""Private functions of torch that only a GPU needs: names and arguments, checked without one."""

import inspect
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing.reductions
import transformers

from tests.unit.engine.tiny import CONFIGS
from worker.engines.transformers.model import float8_linear
from worker.engines.transformers.model.compilation import compile_layers, uncompile_layers
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.linear_tiles import Tile


def test_a_process_group_can_be_aborted() -> None:
    abort = torch.distributed.distributed_c10d._abort_process_group
    required = [
        parameter
        for parameter in inspect.signature(abort).parameters.values()
        if parameter.default is parameter.empty
    ]
    assert not required


@pytest.mark.filterwarnings("ignore")  # torch's own, as it imports its compiler
@torch._dynamo.config.patch(recompile_limit=8)  # type: ignore[untyped-decorator]
def test_layers_are_compiled_and_uncompiled() -> None:
    model: Any = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()
    layout = KVCacheLayout(model)
    assert compile_layers(model, layout) == len(model.model.layers) == len(layout.shapes)
    assert torch._dynamo.config.recompile_limit == 64
    assert all(layer._compiled_call_impl is not None for layer in model.model.layers)
    float8_linear.choose_tile(torch.Size((64, 32)), 16, Tile(64, 256, 1, 4, 4))
    uncompile_layers(model, layout)
    assert not float8_linear._tiles  # any kernel may have failed
    assert all(layer._compiled_call_impl is None for layer in model.model.layers)


def test_memory_of_a_gpu_can_be_shared_with_another_process() -> None:
    """As torch.multiprocessing does it: eight fields, given and taken in the same order."""
    source = inspect.getsource(torch.multiprocessing.reductions)
    assert "storage._share_cuda_()" in source and "storage_cls._new_shared_cuda(" in source
    taken = inspect.signature(torch.multiprocessing.reductions.rebuild_cuda_tensor).parameters
    assert [name for name in taken if name.startswith(("storage_", "ref_", "event_"))] == [
        "storage_cls",
        "storage_device",
        "storage_handle",
        "storage_size_bytes",
        "storage_offset_bytes",
        "ref_counter_handle",
        "ref_counter_offset",
        "event_handle",
        "event_sync_required",
    ]
