"""What runs a job: one small protocol and a table of engines, each a sibling file.

A new engine is a sibling module with a `create` function of the same keyword arguments, plus one line in `ENGINES`.
"""

from collections.abc import Callable
from importlib import import_module

from worker.engines.base import Engine, EngineUnavailable

# The modules are imported when chosen: a node with the echo engine starts without torch.
ENGINES = {
    "echo": "worker.engines.echo",
    "transformers": "worker.engines.transformers",
}


def create(name: str, *, model: str, model_path: str | None, device: str, slots: int, token_delay: float) -> Engine:
    """The engine called `name`, not started yet.

    `model` is the public name it answers to, `model_path` the folder it loads (engines without a model ignore it),
    `device` a torch device or "auto", `slots` how many jobs it runs at once, `token_delay` seconds between tokens
    (echo only). Raises EngineUnavailable for a name that is not in the table or bad `slots`.
    """
    if name not in ENGINES:
        raise EngineUnavailable(f"no engine {name!r}; there are: {', '.join(sorted(ENGINES))}")
    if slots < 1:
        raise EngineUnavailable(f"an engine needs at least one slot, not {slots}")
    module = import_module(ENGINES[name])
    make: Callable[..., Engine] = module.create
    return make(model=model, model_path=model_path, device=device, slots=slots, token_delay=token_delay)
