"""How many tokens fit into the memory of a device, and which cache size follows from that."""

from typing import Any

import psutil
import structlog
import torch

from worker.engines.base import DEFAULT_SLOTS, EngineUnavailable
from worker.engines.transformers.model import settings
from worker.engines.transformers.model.cache_size import (
    CacheSize,
    choose_size,
    min_tokens,
    node_share,
    size_for_slots,
)
from worker.engines.transformers.model.context_length import context_length
from worker.engines.transformers.model.cuda_graphs import GRAPH_BATCH_SIZES

log = structlog.get_logger(__name__)

_GPU_SHARE = 0.85  # of the free memory, once the weights are there; the rest is for a step, graphs
_CPU_SHARE = 0.5


def token_capacity(device: torch.device, bytes_per_token: int, *, shared: bool = False) -> int:
    """How many tokens' keys and values fit into the memory meant for them on `device`. `shared`:
    into this node's part, where other nodes compute on it too (CANOPY_GPU_NODES).
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        nodes = settings.gpu_nodes() if shared else 1
        reserved = torch.cuda.memory_reserved(device)
        cache_bytes = int(node_share(free, total, reserved, nodes) * _GPU_SHARE)
    else:
        cache_bytes = int(psutil.virtual_memory().available * _CPU_SHARE)
    return cache_bytes // max(1, bytes_per_token)


def cache_size_for(
    model: Any, tokens: int, slots: int | None, context: int | None = None
) -> CacheSize:
    """The cache size where `tokens` fit on the tightest device. `slots`: None: as many as fit on a
    GPU, else DEFAULT_SLOTS. `context`: None: the model's own; in both cases no more than there is
    memory for. Raises EngineUnavailable.
    """
    longest = context or context_length(model)
    if slots is not None or model.device.type != "cuda":
        return size_for_slots(tokens, longest, slots or DEFAULT_SLOTS)
    size = choose_size(tokens, longest, GRAPH_BATCH_SIZES)
    if size is None:
        raise EngineUnavailable(
            f"beside the model the GPU has room for keys and values of {tokens} tokens, and one "
            f"answer needs {min_tokens(longest)}: take a GPU with more memory, several, or fewer "
            "nodes on it"
        )
    log.info("slots", chosen=size.slots, context=size.context)
    return size
