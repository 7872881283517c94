"""What runs a job: one small protocol and a table of engines, each a sibling file.

A new engine is a sibling module with a `create` function of the same keyword arguments, plus one line in `ENGINES`.
An engine outside this folder is called by its module's dotted path.
"""

import inspect
from collections.abc import Callable
from importlib import import_module

from worker.engines.base import DEFAULT_SLOTS, Engine, EngineUnavailable

# The modules are imported when chosen: a node with the echo engine starts without torch.
ENGINES = {
    "echo": "worker.engines.echo",
    "openai": "worker.engines.openai.engine",
    "transformers": "worker.engines.transformers.engine",
}


def create(
    name: str,
    *,
    model: str,
    model_path: str | None,
    device: str,
    slots: int | None,
    token_delay: float,
    **own: str | int,
) -> Engine:
    """The engine called `name`, not started yet. A name with a dot is a module to import.

    `model` is the public name it answers to, `model_path` the folder it loads (engines without a model ignore it),
    `device` a torch device or "auto", `slots` how many jobs it runs at once, `token_delay` seconds between tokens
    (echo only). `own`: settings of single engines, such as `upstream`; given to those whose `create` takes them. So is
    `choose_slots`: nobody said how many (`slots` is None), so the engine may choose; the others get DEFAULT_SLOTS.
    Raises EngineUnavailable for a name that is nowhere or bad `slots`.
    """
    if slots is not None and slots < 1:
        raise EngineUnavailable(f"an engine needs at least one slot, not {slots}")
    own["choose_slots"] = slots is None
    make = _maker(name)
    taken = inspect.signature(make).parameters
    settings = {option: value for option, value in own.items() if option in taken}
    return make(
        model=model,
        model_path=model_path,
        device=device,
        slots=slots or DEFAULT_SLOTS,
        token_delay=token_delay,
        **settings,
    )


def _maker(name: str) -> Callable[..., Engine]:
    """The `create` function of that engine."""
    path = name if "." in name else ENGINES.get(name)
    if path is None:
        raise EngineUnavailable(f"no engine {name!r}; there are: {', '.join(sorted(ENGINES))}")
    try:
        make: Callable[..., Engine] = import_module(path).create
    except (ImportError, AttributeError) as error:
        raise EngineUnavailable(f"no engine {name!r}: {error}") from error
    return make
