"""What a host allows operators to start on it, and why a request is refused. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from broker.host_messages import HostDevice, StartNode

SPARE_BYTES = 300_000_000  # of memory, besides a model's weights
_OVERHEAD = 1.2  # of a model's memory to its weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """`models`: public name -> what --model said; `devices`: empty for all of this machine's."""

    models: Mapping[str, str]
    devices: tuple[str, ...]
    max_nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """The machine now. `names`: of processes here; `nodes`: how many of them count."""

    names: Collection[str]
    nodes: int
    memory_free: int
    devices: tuple[HostDevice, ...]


def refusal(request: StartNode, allowed: Allowed, present: Present) -> str | None:
    """Why the host does not start that node; None if it does."""
    if request.model not in allowed.models:
        return (
            f"this host does not allow the model {request.model!r}; it allows "
            f"{', '.join(allowed.models) or 'none'} (--allow-model)"
        )
    if request.node in present.names:
        return f"a process {request.node} runs here already"
    if request.parent is None:  # a root computes nothing
        return None
    if present.nodes >= allowed.max_nodes:
        return f"{present.nodes} nodes run here, and no more are allowed (--max-nodes)"
    return _device_refusal(request.device, allowed, present)


def _device_refusal(device: str, allowed: Allowed, present: Present) -> str | None:
    if device.startswith("cuda") and device not in [item.name for item in present.devices]:
        return f"this host has no device {device}"
    if device not in ("", "auto") and allowed.devices and device not in allowed.devices:
        return f"this host does not allow the device {device} (--allow-device)"
    return None


def shortage(weights: int, device: str, present: Present) -> str | None:
    """Why a model with weights of so many bytes does not fit now; None if it does."""
    most = largest(device, present)
    if most is None or weights <= most:
        return None
    return f"its weights are {_gigabytes(weights)}, and up to {_gigabytes(most)} would fit"


def largest(device: str, present: Present) -> int | None:
    """Bytes of weights that fit now; None: not known, as the node chooses among GPUs."""
    free = _free(device, present)
    if free is None:
        return None
    return max(0, int((free - SPARE_BYTES) / _OVERHEAD))


def _free(device: str, present: Present) -> int | None:
    for gpu in present.devices:
        if gpu.name == device:
            return gpu.memory_free
    if device.startswith("cuda") or (device in ("", "auto") and present.devices):
        return None
    return present.memory_free


def _gigabytes(amount: int) -> str:
    return f"{amount / 1e9:.1f} GB"
