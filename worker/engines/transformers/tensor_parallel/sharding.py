"""One rank's shard of a model that is computed by several processes: what all ranks do alike, rank 0 included.

The shards are transformers' own tensor parallelism: each layer's heads and hidden features are divided among the
ranks, and a sum over all ranks (torch.distributed: gloo on CPUs, nccl on GPUs) follows each half of a layer. The
architecture's plan says where.
"""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import structlog
import torch
import torch.distributed
import transformers
from transformers.distributed import DistributedConfig

from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model.loader import load_weights, room, size_of
from worker.engines.transformers.model.probe import Shape, fit
from worker.engines.transformers.model.rope import choose_by_sequence
from worker.engines.transformers.model.runner import SlotModel, Unfit
from worker.engines.transformers.model.twin import Twin, prove_slots
from worker.errors import one_line

log = structlog.get_logger(__name__)

LOOPBACK = "127.0.0.1"


def check_plan(folder: Path, ranks: int) -> None:
    """Whether that model can be divided by so many. Reads no weights; raises EngineUnavailable."""
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
    text = config.get_text_config()
    for what in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(text, what, None)
        if isinstance(heads, int) and heads % ranks:
            raise EngineUnavailable(f"{name} cannot be divided by {ranks}: its {what} is {heads}")


def place_of(base: torch.device, rank: int, ranks: int) -> torch.device:
    """The device of `rank`: the same CPU, or the GPUs from `base` on. Raises EngineUnavailable."""
    found = torch.accelerator.current_accelerator()
    kind = found.type if found is not None else "cpu"
    if base.type != kind:
        raise EngineUnavailable(f"tensor parallelism takes this machine's {kind}, not {base}")
    if base.type == "cpu":
        return base
    first, there = base.index or 0, torch.accelerator.device_count()
    if first + ranks > there:
        raise EngineUnavailable(
            f"{ranks} devices from {base} on are not there: this machine has {there}"
        )
    return torch.device(base.type, first + rank)


def threads_of(ranks: int) -> int:
    """Cores that each rank of a node computes on: those that the node may take, divided."""
    asked = os.environ.get("CANOPY_THREADS", "")
    cores = int(asked) if asked.isdecimal() else psutil.cpu_count(logical=False) or 1
    return max(1, cores // ranks)


def open_store(seconds: float) -> tuple[Any, int]:
    """Where the ranks find each other: rank 0's end, listening on loopback alone, and its port."""
    listening = socket.socket()
    listening.bind((LOOPBACK, 0))
    listening.listen()
    port = int(listening.getsockname()[1])
    store = torch.distributed.TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=seconds),
        master_listen_fd=listening.detach(),
    )
    return store, port


def join_group(store: Any, rank: int, ranks: int, place: torch.device, seconds: float) -> None:
    """This process becomes `rank`; returns when all have come. Raises RuntimeError."""
    loopback = "lo" if sys.platform == "linux" else "lo0"
    for name in (
        "GLOO_SOCKET_IFNAME",
        "NCCL_SOCKET_IFNAME",
    ):  # all ranks are here: nothing is opened to the network
        os.environ.setdefault(name, loopback)
    # By itself torch ends the whole process when a rank is gone; here that is noticed, and answered for, otherwise.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    gpu = place.type != "cpu"
    if gpu:
        torch.accelerator.set_device_index(place.index)
    torch.distributed.init_process_group(
        "nccl" if gpu else "gloo",
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=seconds),
        device_id=place if gpu else None,
    )


def leave_group(seconds: float) -> bool:
    """Ends this process's part, whatever state the others are in; False if that has not ended after so long."""
    thread = threading.Thread(target=_leave_group, name="leave group", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


_leaving = (
    threading.Lock()
)  # whoever finds a rank gone, and whoever stops the engine, may come at the same time


def _leave_group() -> None:
    with _leaving:
        if not torch.distributed.is_initialized():
            return
        if torch.distributed.get_backend() == "nccl":  # an ordinary end would wait for the others
            torch.distributed.distributed_c10d._abort_process_group()
        else:
            torch.distributed.destroy_process_group()


def load_shard(folder: Path, place: torch.device, ranks: int) -> Any:
    """This rank's part of the weights. All ranks must be in the group. Raises what transformers raises."""
    with _told(LOCAL_RANK=str(place.index or 0)):  # the library takes the device from there
        return load_weights(folder, place, distributed_config=DistributedConfig(tp_size=ranks))


def fit_shard(model: Any, slots: int | None, ranks: int) -> SlotModel:
    """The shard over slots, checked, in step with all other ranks: each decides by the memory of the tightest one, so
    all have as many slots (None: as many as fit there), of the same context. Raises EngineUnavailable.
    """
    place: torch.device = model.device
    sharing = ranks if place.type == "cpu" else 1  # ranks that take from the same memory
    try:
        limit = choose_by_sequence(model)
        shape = Shape(model)
        reread = prove_slots(Twin(model), shape.kinds)
        own = room(place, sharing * shape.bytes_per_token(model.dtype), shared=slots is None)
        least = torch.tensor([own], device=place)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        over = fit(model, shape, *size_of(model, int(least), slots))
    except (Unfit, RuntimeError) as error:
        said = one_line(error)
        raise EngineUnavailable(
            f"{type(model).__name__} cannot be computed by {ranks} processes: {said}"
        ) from error
    over.limit = limit._replace(reread=reread) if limit is not None else None
    over.capture_mode = "thread_local"  # nccl's own threads look at their events meanwhile
    return over


def capture(over: SlotModel) -> str:
    """Records the decoding steps on a GPU, with the sums over all ranks inside; why not, or ""."""
    try:
        with torch.inference_mode():
            over.capture(log.info)
    except (
        Exception
    ) as error:  # a driver or a library that cannot record a collective; plain decoding works
        return one_line(error)
    return ""


@contextmanager
def _told(**settings: str) -> Iterator[None]:
    """The environment with these."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
