"""Whether a model's weights have room, before they are read, and what would have."""

from pathlib import Path

import psutil
import structlog
import torch

from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import settings
from worker.engines.transformers.model.memory import free_on_gpu
from worker.engines.transformers.model.placement import max_weight_memory
from worker.engines.transformers.model.weight_files import read_headers
from worker.errors import one_line
from worker.models import DEFAULT
from worker.models.progress import readable

log = structlog.get_logger(__name__)

_RANKS = (2, 4, 8)


def check_room(
    folder: Path,
    devices: list[torch.device],
    *,
    ranks: int = 1,
    room: int | None = None,
    packed_bits: int | None = None,
    float8_weights: int = 0,
) -> None:
    """`devices`: that the layers are spread over, or the first of `ranks` that divide each of them.
    `room`: bytes on all of them together (None: see `free_room`). `packed_bits`: see
    `WeightFiles.bytes_in`; `float8_weights`: how many become float8 as they are read. Raises
    EngineUnavailable if the weights have no room. Files whose size cannot be told pass: loading
    them says what is wrong with them.
    """
    try:
        files = read_headers(folder)
    except (OSError, ValueError) as error:
        log.warning("the size of the weights is not known", reason=one_line(error))
        return
    dtype = torch.float32 if devices[0].type == "cpu" else torch.bfloat16
    needed = files.bytes_in(dtype, packed_bits) - float8_weights * (dtype.itemsize - 1)
    room = free_room(devices, ranks) if room is None else room
    if needed > room:
        raise EngineUnavailable(_refusal(folder, devices, needed, room, ranks))


def free_room(devices: list[torch.device], ranks: int) -> int:
    """Bytes of weights that have room on all of them together. Asks only the first of several
    ranks' GPUs: on the others this process would take memory for as long as it lives.
    """
    first = devices[0]
    if first.type == "cpu":
        return int(psutil.virtual_memory().available)
    if first.type != "cuda":
        return 1 << 62
    if len(devices) > 1:
        free = {device: free_on_gpu(device) for device in devices}
        return sum(max_weight_memory(free).values())
    return ranks * free_on_gpu(first)


def _refusal(folder: Path, devices: list[torch.device], needed: int, room: int, ranks: int) -> str:
    first = devices[0]
    advice = advise(
        needed,
        room,
        max(ranks, len(devices)),
        _gpus(first),
        packaged=folder.name != DEFAULT,
        fraction=settings.memory_fraction() if first.type == "cuda" else None,
    )
    return (
        f"the weights in {folder} need {readable(needed)}, and there is room for {readable(room)} "
        f"{_place(devices, ranks)}: {advice}"
    )


def _place(devices: list[torch.device], ranks: int) -> str:
    if devices[0].type == "cpu":
        return "in this machine"
    if ranks > 1:
        return f"on {ranks} GPUs together"
    if len(devices) > 1:
        return f"on {', '.join(map(str, devices))} together"
    return f"on {devices[0]}"


def _gpus(device: torch.device) -> int:
    """How many there are from `device` on."""
    if device.type != "cuda":
        return 0
    return torch.cuda.device_count() - (device.index or 0)


def advise(
    needed: int,
    room: int,
    taken: int,
    gpus: int,
    *,
    packaged: bool,
    fraction: float | None = None,
) -> str:
    """What would fit. Pure; `room`: of the `taken` devices together, of `gpus` there; `fraction`:
    the operator's, of the memory of each.
    """
    advice: list[str] = []
    for count in _RANKS:
        if taken < count <= gpus and needed <= room // taken * count:
            advice.append(f"take --tensor-parallel {count}")
            break
    if fraction is not None and fraction < 1:
        advice.append(f"raise --memory-fraction, which is {fraction:g}")
    advice.append(f"end what else takes its memory ({readable(needed - room)} are missing)")
    if packaged:
        advice.append(f"or a smaller model, such as --model {DEFAULT}")
    return ", ".join(advice)
