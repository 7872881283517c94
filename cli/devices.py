"""Which node computes on which GPU, and how many nodes a model gets where nobody says so. Pure."""

from collections import Counter
from collections.abc import Sequence

USUAL_NODES = 2
_WITHOUT = ("openai", "echo")  # engines that compute no model here; one of somebody's own may


def may_choose(engine: str, device: str | None) -> bool:
    """Whether nodes of that engine compute on this machine, and nobody has said where."""
    return engine not in _WITHOUT and device in (None, "auto")


def usual_nodes(engine: str, device: str | None, gpus: int, tensor_parallel: int) -> int:
    """How many nodes a model gets: one for each GPU, or for each `tensor_parallel` of them; one for those that are
    named; where no GPU has a part in it, USUAL_NODES.
    """
    if may_choose(engine, device) and gpus:
        return _turns(gpus, tensor_parallel)
    named = engine not in _WITHOUT and device is not None and device.startswith("cuda")
    return 1 if named else USUAL_NODES


def deal(nodes: int, gpus: int, tensor_parallel: int) -> list[str | None]:
    """The device of each node, GPUs in turn: the first of the `tensor_parallel` in a row that it takes. None for all
    where there is nothing to choose: each then finds the only GPU, or that it has none, by itself.
    """
    if gpus < 2:
        return [None] * nodes
    turns = _turns(gpus, tensor_parallel)
    return [f"cuda:{node % turns * tensor_parallel}" for node in range(nodes)]


def most_on_one(devices: Sequence[str | None]) -> int:
    """How many nodes share a device, where most do."""
    return max(Counter(devices).values(), default=1)


def _turns(gpus: int, tensor_parallel: int) -> int:
    """At least one: a node that wants more GPUs than there are says so itself."""
    return max(1, gpus // tensor_parallel)
