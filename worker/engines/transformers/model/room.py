"""Whether a model's weights have room, before they are read, and what would have."""

from pathlib import Path

import psutil
import structlog
import torch

from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model.memory import free_on_gpu
from worker.engines.transformers.model.placement import max_weight_memory
from worker.engines.transformers.model.weight_files import read_headers
from worker.errors import one_line
from worker.models import DEFAULT
from worker.models.progress import gigabytes

log = structlog.get_logger(__name__)

_RANKS = (2, 4, 8)


def check_room(
    folder: Path,
    devices: list[torch.device],
    *,
    ranks: int = 1,
    dtype: torch.dtype | None = None,
) -> None:
    """`devices`: that the layers are spread over, or the first of `ranks` that divide each of them.
    `dtype`: that the weights are kept in; None: float32 on a CPU, else bfloat16. Raises
    EngineUnavailable if the weights have no room. Files whose size cannot be told pass: loading
    them says what is wrong with them.
    """
    try:
        files = read_headers(folder)
    except (OSError, ValueError) as error:
        log.warning("the size of the weights is not known", reason=one_line(error))
        return
    first = devices[0]
    usual = torch.float32 if first.type == "cpu" else torch.bfloat16
    needed = files.bytes_in(dtype or usual)
    room = free_room(devices, ranks)
    if needed > room:
        raise EngineUnavailable(_refusal(folder, first, needed, room, ranks))


def free_room(devices: list[torch.device], ranks: int) -> int:
    """Bytes of weights that have room on all of them together."""
    first = devices[0]
    if first.type == "cpu":
        return int(psutil.virtual_memory().available)
    if first.type != "cuda":
        return 1 << 62
    if ranks > 1:
        start = first.index or 0
        taken = [torch.device("cuda", index) for index in range(start, start + ranks)]
        return ranks * min(free_on_gpu(device) for device in taken)
    if len(devices) > 1:
        free = {device: free_on_gpu(device) for device in devices}
        return sum(max_weight_memory(free).values())
    return free_on_gpu(first)


def _refusal(folder: Path, device: torch.device, needed: int, room: int, ranks: int) -> str:
    place = "this machine" if device.type == "cpu" else str(device)
    if ranks > 1:
        place = f"{ranks} GPUs from {device} on"
    advice = advise(needed, room, ranks, _gpus(device), packaged=folder.name != DEFAULT)
    return (
        f"the weights in {folder} need {gigabytes(needed)}, and {place} has room for "
        f"{gigabytes(room)}: {advice}"
    )


def _gpus(device: torch.device) -> int:
    """How many there are from `device` on."""
    if device.type != "cuda":
        return 0
    return torch.cuda.device_count() - (device.index or 0)


def advise(needed: int, room: int, ranks: int, gpus: int, *, packaged: bool) -> str:
    """What would fit. Pure; `room`: of `ranks` devices together, of `gpus` there."""
    advice: list[str] = []
    for count in _RANKS:
        if ranks < count <= gpus and needed <= room // ranks * count:
            advice.append(f"take --tensor-parallel {count}")
            break
    advice.append(f"end what else takes its memory ({gigabytes(needed - room)} are missing)")
    if packaged:
        advice.append(f"or a smaller model, such as --model {DEFAULT}")
    return ", ".join(advice)
