"""Which node computes on which GPU, and how many nodes a model gets by default. Pure."""

from collections import Counter
from collections.abc import Sequence

NODES_WITHOUT_GPU = 2
_REMOTE_ENGINES = ("openai", "echo")  # compute no model here; a user's own engine may


def may_choose(engine: str, device: str | None) -> bool:
    """Whether nodes of that engine compute on this machine, on a device left to us."""
    return engine not in _REMOTE_ENGINES and device in (None, "auto")


def default_nodes(engine: str, device: str | None, gpus: int, tensor_parallel: int) -> int:
    """Nodes of a model: one per `tensor_parallel` GPUs, one for the GPUs that `device` names, or
    NODES_WITHOUT_GPU where no GPU is used.
    """
    if may_choose(engine, device) and gpus:
        return _groups(gpus, tensor_parallel)
    if engine not in _REMOTE_ENGINES and device is not None and device.startswith("cuda"):
        return 1
    return NODES_WITHOUT_GPU


def assign(nodes: int, gpus: int, tensor_parallel: int) -> list[str | None]:
    """The device of each node, round-robin: the first of the `tensor_parallel` GPUs that it takes.

    None with fewer than two GPUs: the node finds the only one, or that there is none, by itself.
    """
    if gpus < 2:
        return [None] * nodes
    groups = _groups(gpus, tensor_parallel)
    return [f"cuda:{node % groups * tensor_parallel}" for node in range(nodes)]


def most_on_one(devices: Sequence[str | None]) -> int:
    """The highest number of nodes on one device."""
    return max(Counter(devices).values(), default=1)


def _groups(gpus: int, tensor_parallel: int) -> int:
    """Groups of `tensor_parallel` GPUs, at least one: a node that lacks GPUs reports it itself."""
    return max(1, gpus // tensor_parallel)
