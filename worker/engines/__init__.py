"""What runs a job: a small protocol (base.py) and a table of engines.

A new engine is a module with a `create` function of the same keyword arguments, plus a line in
`ENGINES`. An engine outside this folder is named by its module's dotted path.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from worker.engines import tasks
from worker.engines.base import DEFAULT_SLOTS, Engine, EngineUnavailable
from worker.models import installed

# The modules are imported when chosen: a node with the echo engine starts without torch.
ENGINES = {
    "echo": "worker.engines.echo",
    "encoder": "worker.engines.encoder.engine",
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
    **options: str | int,
) -> Engine:
    """The engine called `name`, not started yet. A name with a dot is a module to import.

    `model`: the public name it answers to. `model_path`: the folder it loads; engines without a
    model ignore it. `device`: a torch device or "auto". `slots`: how many jobs it runs at once;
    None: the engine chooses if its `create` takes `choose_slots`, otherwise DEFAULT_SLOTS.
    `token_delay`: seconds between tokens, for echo only. `options`: settings of single engines,
    such as `upstream`, given to those whose `create` takes them. With a `task` other than to
    generate, or a folder that plainly is for another one, "transformers" means "encoder".

    Raises EngineUnavailable for an unknown name or bad `slots`.
    """
    if slots is not None and slots < 1:
        raise EngineUnavailable(f"an engine needs at least one slot, not {slots}")
    options["choose_slots"] = slots is None
    if name == "transformers":
        folder = Path(model_path) if model_path else installed(model)
        options["task"] = tasks.choose(str(options.get("task", tasks.AUTO)), folder)
        if options["task"] != "generate":
            name = "encoder"
    factory = _factory(name)
    parameters = inspect.signature(factory).parameters
    accepted: dict[str, str | int] = {}
    for option, value in options.items():
        if option in parameters:
            accepted[option] = value
    return factory(
        model=model,
        model_path=model_path,
        device=device,
        slots=slots or DEFAULT_SLOTS,
        token_delay=token_delay,
        **accepted,
    )


def _factory(name: str) -> Callable[..., Engine]:
    """The `create` function of that engine."""
    path = ENGINES.get(name)
    if "." in name:
        path = name
    if path is None:
        raise EngineUnavailable(f"no engine {name!r}; there are: {', '.join(sorted(ENGINES))}")
    try:
        factory: Callable[..., Engine] = import_module(path).create
    except (ImportError, AttributeError) as error:
        raise EngineUnavailable(f"no engine {name!r}: {error}") from error
    return factory
