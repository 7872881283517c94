"""Where a model is computed: on one device, or, if it is larger than one GPU, with its layers
spread over several (`--device cuda:0,cuda:1`). accelerate decides which layer goes where, and moves
what passes from one to the next.

While one GPU computes the others wait, so spreading adds memory and no speed; tensor parallelism
adds both.
"""

import torch

from worker.engines.base import EngineUnavailable
from worker.errors import one_line

_WEIGHTS_SHARE = 0.8  # of each GPU's free memory, at most; the rest is for keys and values


def find_devices(names: str) -> list[torch.device]:
    """The devices called `names`: one, or several separated by commas. Raises EngineUnavailable."""
    devices = [find_device(name.strip()) for name in names.split(",")]
    if len(devices) == 1:
        return devices
    if any(device.type != "cuda" or device.index is None for device in devices):
        raise EngineUnavailable(
            f"only GPUs can share a model, by their numbers (cuda:0,cuda:1), not {names!r}"
        )
    if len(set(devices)) < len(devices):
        raise EngineUnavailable(f"a device is named twice in {names!r}")
    return devices


def find_device(name: str) -> torch.device:
    """The torch device called `name`; "auto" is the first GPU or else the CPU. Raises
    EngineUnavailable.
    """
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda:0"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # "no CUDA" is an assertion
        raise EngineUnavailable(f"no such device {name!r}: {one_line(error)}") from error
    if device.type == "meta":
        raise EngineUnavailable("no such device 'meta'")
    return device


def max_weight_memory(free: dict[torch.device, int]) -> dict[int, int]:
    """For accelerate: how many bytes of weights a GPU may hold, by its number. `free`: bytes."""
    return {device.index: int(memory * _WEIGHTS_SHARE) for device, memory in free.items()}


def check_device_map(
    device_map: dict[str, int | str | torch.device], devices: list[torch.device]
) -> None:
    """`device_map`: accelerate's, the device of each part of the model. Raises EngineUnavailable if
    a part is on none of the GPUs: a step would take seconds with the host's memory, or the disk.
    """
    indices = {device.index for device in devices}
    for part in sorted(device_map):
        index = device_map[part]
        if isinstance(index, torch.device):
            index = index.index
        if index not in indices:
            raise EngineUnavailable(
                f"the model is too large for these {len(devices)} GPUs: no room for {part!r}"
            )
