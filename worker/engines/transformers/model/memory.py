"""How many tokens fit into the memory of a device, and which cache size follows from that."""

from typing import Any

import psutil
import structlog
import torch

from worker.engines.base import DEFAULT_SLOTS, EngineUnavailable, Footprint
from worker.engines.transformers.model import settings
from worker.engines.transformers.model.block_groups import BlockGroups
from worker.engines.transformers.model.cache_size import (
    ONE_GROUP,
    BlockSplit,
    CacheSize,
    fraction_share,
    min_tokens,
    node_share,
    size_for_pages,
    size_for_slots,
)
from worker.engines.transformers.model.context_length import context_length
from worker.engines.transformers.model.cuda_graphs import GRAPH_BATCH_SIZES
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.model.runner import CACHES

log = structlog.get_logger(__name__)

_GPU_SHARE = 0.85  # of the free memory, once the weights are there; the rest is for a step, graphs
_CPU_SHARE = 0.5


def footprint(loaded: LoadedModel) -> Footprint:
    """What the model takes in this process. Without a runner, keys and values come and go."""
    cache = 0
    if loaded.runner is not None:
        cache = loaded.runner.cache_bytes
    precision = loaded.precision or str(loaded.model.dtype).removeprefix("torch.")
    return Footprint(precision, weight_bytes(loaded.model), cache)


def weight_bytes(model: torch.nn.Module) -> int:
    """Of all parameters, buffers and quantized weights, which are attributes; shared ones once."""
    sizes: dict[int, int] = {}
    for module in model.modules():
        for values in (vars(module), module._parameters, module._buffers):
            for name, tensor in values.items():
                if isinstance(tensor, torch.Tensor) and name not in CACHES:
                    sizes[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(sizes.values())


def uses_pages(device: torch.device) -> bool:
    """Whether the KV cache has blocks. A CPU reads contiguous rows fastest."""
    return device.type == "cuda"


def free_on_gpu(device: torch.device, nodes: int = 1) -> int:
    """Bytes that this process may still take there: of the fraction that the operator gave it, or
    else of what is free, shared with as many `nodes`. Raises EngineUnavailable.
    """
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    fraction = settings.memory_fraction()
    if fraction is None:
        return node_share(free, total, reserved, nodes)
    return fraction_share(free, total, reserved, fraction)


def limit_gpu_memory(device: torch.device) -> None:
    """What a process computes beyond its fraction fails there, instead of in other programs.
    Raises EngineUnavailable.
    """
    fraction = settings.memory_fraction()
    if fraction is not None and device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        allocated = fraction_share(total, total, 0, fraction)
        torch.cuda.set_per_process_memory_fraction(allocated / total, device)


def token_capacity(device: torch.device, bytes_per_token: int, *, shared: bool = False) -> int:
    """How many tokens' keys and values fit into the memory meant for them on `device`. `shared`:
    into this node's part, where other nodes compute on it too (CANOPY_GPU_NODES); a fraction that
    the operator gave (CANOPY_MEMORY_FRACTION) is this node's alone.
    """
    if device.type == "cuda":
        nodes = settings.gpu_nodes() if shared else 1
        cache_bytes = int(free_on_gpu(device, nodes) * _GPU_SHARE)
    else:
        cache_bytes = int(psutil.virtual_memory().available * _CPU_SHARE)
    return cache_bytes // max(1, bytes_per_token)


def _split(groups: BlockGroups | None) -> BlockSplit:
    if groups is None:
        return ONE_GROUP
    return BlockSplit(len(groups.windows), groups.per_token)


def cache_size_for(
    model: Any,
    tokens: int,
    slots: int | None,
    context: int | None = None,
    *,
    pages: bool = False,
    groups: BlockGroups | None = None,
) -> CacheSize:
    """The cache size where `tokens` fit on the tightest device. `slots`: None: as many as usually
    have room with `pages`, which are blocks instead of a row for each slot; else DEFAULT_SLOTS.
    `context`: None: the model's own; in both cases no more than there is memory for. Raises
    EngineUnavailable.
    """
    longest = context or context_length(model)
    if not pages:
        return size_for_slots(tokens, longest, slots or DEFAULT_SLOTS)
    size = size_for_pages(tokens, longest, slots, GRAPH_BATCH_SIZES, _split(groups))
    if size is None:
        raise EngineUnavailable(
            f"beside the model the GPU has room for keys and values of {tokens} tokens, and one "
            f"answer needs {min_tokens(longest)}: take a GPU with more memory, several, or fewer "
            "nodes on it"
        )
    log.info("slots", chosen=size.slots, context=size.context)
    return size
