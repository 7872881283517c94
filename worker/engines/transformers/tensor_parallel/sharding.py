"""One rank's shard of a model that several processes compute: what all ranks do alike, rank 0
included.

The shards are transformers' own tensor parallelism: each layer's heads and hidden features are
divided among the ranks, and a sum over all ranks (torch.distributed: gloo on CPUs, NCCL on GPUs)
follows each half of a layer. The architecture's plan says where.
"""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import structlog
import torch
import torch.distributed
import transformers
from transformers.distributed import DistributedConfig

from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import (
    compilation,
    float8_cache,
    gpu_precision,
    settings,
)
from worker.engines.transformers.model.cache_size import CacheSize
from worker.engines.transformers.model.checkpoint_format import packed_bits
from worker.engines.transformers.model.context_length import context_length
from worker.engines.transformers.model.errors import UnsupportedModel
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.loader import load_config, load_weights
from worker.engines.transformers.model.memory import (
    cache_size_for,
    limit_gpu_memory,
    token_capacity,
    uses_pages,
)
from worker.engines.transformers.model.miniature import Miniature
from worker.engines.transformers.model.probe import check_equal, create_runner, probe_runner
from worker.engines.transformers.model.room import check_room, free_room
from worker.engines.transformers.model.rope import choose_by_sequence
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.engines.transformers.tensor_parallel.local_layers import use_local_layers
from worker.engines.transformers.tensor_parallel.peer_memory import PeerMemory, share_memory
from worker.errors import one_line

log = structlog.get_logger(__name__)

LOOPBACK = "127.0.0.1"
_TRIAL_TOKENS = 16  # that are spread over the vocabulary, and so over the ranks' parts of it
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

_leaving = threading.Lock()  # a lost rank and a stopped engine may both leave at the same time


def check_plan(folder: Path, ranks: int) -> None:
    """Checks that the model can be divided among `ranks`. Reads no weights; raises
    EngineUnavailable.
    """
    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    name = type(model).__name__
    if not any("layers." in rule for rule in model.tp_plan or {}):
        raise EngineUnavailable(
            f"{name} has no tensor-parallel plan in transformers: it runs on one device only"
        )
    text_config = config.get_text_config()
    for setting in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(text_config, setting, None)
        if isinstance(heads, int) and heads % ranks:
            raise EngineUnavailable(
                f"{name} cannot be divided by {ranks}: its {setting} is {heads}"
            )


def device_of_rank(base: torch.device, rank: int, ranks: int) -> torch.device:
    """The device of `rank`: the same CPU, or the GPUs from `base` on. Raises EngineUnavailable."""
    accelerator = torch.accelerator.current_accelerator()
    kind = accelerator.type if accelerator is not None else "cpu"
    if base.type != kind:
        raise EngineUnavailable(f"tensor parallelism takes this machine's {kind}, not {base}")
    if base.type == "cpu":
        return base
    first, count = base.index or 0, torch.accelerator.device_count()
    if first + ranks > count:
        raise EngineUnavailable(
            f"there are not {ranks} devices from {base} on: this machine has {count}"
        )
    return torch.device(base.type, first + rank)


def threads_per_rank(ranks: int) -> int:
    """The cores that the node may take, divided among its ranks. Raises EngineUnavailable."""
    cores = settings.threads() or psutil.cpu_count(logical=False) or 1
    return max(1, cores // ranks)


def open_store(timeout: float) -> tuple[Any, int]:
    """Rank 0's end of the store where the ranks meet, listening on loopback alone, and its port."""
    listener = socket.socket()
    listener.bind((LOOPBACK, 0))
    listener.listen()
    port = int(listener.getsockname()[1])
    store = torch.distributed.TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
        master_listen_fd=listener.detach(),
    )
    return store, port


def join_group(store: Any, rank: int, ranks: int, device: torch.device, timeout: float) -> None:
    """This process becomes `rank`; returns when all have joined. Raises RuntimeError."""
    loopback = "lo" if sys.platform == "linux" else "lo0"
    for name in _INTERFACE_VARIABLES:  # all ranks are here: nothing is opened to the network
        os.environ.setdefault(name, loopback)
    # By default torch ends the whole process when a rank is gone; the leader handles that instead.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    backend, device_id = "gloo", None
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
        backend, device_id = "nccl", device
    torch.distributed.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout),
        device_id=device_id,
    )


def leave_group(timeout: float, memory: PeerMemory | None = None) -> bool:
    """Ends this process's part, whatever state the others are in; False if it hangs. `memory`: of
    the shard, if there is one.
    """
    if memory is not None:
        memory.release()
    thread = threading.Thread(target=_leave_group, name="leave group", daemon=True)
    thread.start()
    thread.join(timeout)
    return not thread.is_alive()


def _leave_group() -> None:
    with _leaving:
        if not torch.distributed.is_initialized():
            return
        if torch.distributed.get_backend() == "nccl":  # a regular end would wait for the others
            torch.distributed.distributed_c10d._abort_process_group()
        else:
            torch.distributed.destroy_process_group()


def load_shard(folder: Path, device: torch.device, ranks: int) -> Any:
    """This rank's part of the weights. All ranks must be in the group. Raises what transformers
    raises, and EngineUnavailable on all ranks if one of them has no room.
    """
    limit_gpu_memory(device)
    config = load_config(folder, device, divided=True)
    room = torch.tensor([free_room([device], ranks)], device=device)
    torch.distributed.all_reduce(room, torch.distributed.ReduceOp.MIN)
    check_room(folder, [device], ranks=ranks, room=int(room), packed_bits=packed_bits(config))
    with _environment(LOCAL_RANK=str(device.index or 0)):  # transformers takes the device from it
        plan = DistributedConfig(tp_size=ranks)
        return load_weights(folder, device, config, distributed_config=plan)


class Shard(NamedTuple):
    """This rank's part of the model, ready to compute in step with the others."""

    model: Any
    layout: KVCacheLayout
    runner: LocalModelRunner
    memory: PeerMemory
    precision: str  # "": the one that it was loaded in


def create_shard(model: Any, tokenizer: Any, slots: int | None, ranks: int) -> Shard:
    """The shard with its runner, checked in step with all other ranks. The memory of the tightest
    rank decides, so all have the same slots (None: as many as fit there) and context. Raises
    EngineUnavailable.
    """
    device: torch.device = model.device
    try:
        memory = share_memory(device, model.dtype)
        _use_local_layers(model, memory)
        precision = ""
        if device.type == "cuda":
            attention = str(model.config._attn_implementation)
            precision = gpu_precision.quantize(model, tokenizer, attention)
        rope_limit = choose_by_sequence(model)
        layout = KVCacheLayout(model, context_length(model))
        prefill_again = probe_runner(Miniature(model), layout.kinds)
        if rope_limit is not None:
            rope_limit = rope_limit._replace(prefill_again=prefill_again)
        if float8_cache.is_requested(device):
            float8_cache.use_float8(model, tokenizer, layout)
        size = _cache_size(model, layout, slots, ranks)
        runner = create_runner(
            model,
            layout,
            size,
            rope_limit=rope_limit,
            capture_mode="thread_local",  # NCCL's own threads query their events meanwhile
        )
        _agree_on_tail(runner)
    except (UnsupportedModel, RuntimeError) as error:
        raise EngineUnavailable(
            f"{type(model).__name__} cannot be computed by {ranks} processes: {one_line(error)}"
        ) from error
    return Shard(model, layout, runner, memory, precision)


def _agree_on_tail(runner: LocalModelRunner) -> None:
    """All ranks keep the last layer's tail, or none does: their sums are of as many tokens."""
    keeps = torch.tensor([int(runner.keeps_tail)], device=runner.device)
    torch.distributed.all_reduce(keeps, torch.distributed.ReduceOp.MIN)
    if not int(keeps):
        runner.compute_whole_tail()


def _cache_size(model: Any, layout: KVCacheLayout, slots: int | None, ranks: int) -> CacheSize:
    """Of the tightest rank. Raises EngineUnavailable."""
    device: torch.device = model.device
    sharing = ranks if device.type == "cpu" else 1  # ranks that take from the same memory
    bytes_per_token = sharing * layout.bytes_per_token(layout.dtype)
    capacity = token_capacity(device, bytes_per_token, shared=slots is None)
    tightest = torch.tensor([capacity], device=device)
    torch.distributed.all_reduce(tightest, torch.distributed.ReduceOp.MIN)
    return cache_size_for(
        model, int(tightest), slots, pages=uses_pages(device), groups=layout.block_groups
    )


def _use_local_layers(model: Any, memory: PeerMemory) -> None:
    """Checks their answers against those of the library's divided layers. Raises
    UnsupportedModel.
    """
    expected = _trial_logits(model)
    replaced = use_local_layers(model, memory)
    check_equal(model.dtype, [_trial_logits(model)], [expected])
    log.info("divided layers", replaced=replaced)


@torch.inference_mode()
def _trial_logits(model: Any) -> torch.Tensor:
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.arange(_TRIAL_TOKENS, device=model.device)[None] * (vocabulary // _TRIAL_TOKENS)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0].float()
    return logits


def capture_graphs(shard: Shard, *, compiled: bool) -> str:
    """Captures the graphs on a GPU, including the sums over all ranks, with or without compiled
    layers. Why that failed, or "".
    """
    try:
        if compiled:
            compilation.compile_model(shard.model, shard.layout, shard.runner.slots)
        with torch.inference_mode():
            shard.runner.capture_graphs(log.info)
    except Exception as error:  # a driver or library may be unable to capture a collective
        return one_line(error)
    return ""


def drop_graphs(shard: Shard) -> None:
    """Undoes `capture_graphs`."""
    compilation.uncompile_layers(shard.model, shard.layout)
    shard.runner.drop_graphs()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """The environment with these variables meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
