"""Commands about an instance as a whole: up, down, status, doctor."""

import contextlib
import json
import os
import signal
import time
from typing import Annotated, Any

import psutil
import typer

from cli import devices, instance, joining, ports, tree, up
from cli import home as homes
from cli import lock as locking
from cli.errors import CliError
from cli.home import Home
from cli.plan import Request
from cli.prepare import doctor as doctoring
from cli.prepare import gpus as machine_gpus
from cli.prepare.model import Model
from topology.dispatch import POLICIES

DEFAULT_MODEL = "gemma-3-270m"
ENGINES = ("transformers", "openai", "echo")
UPSTREAM_WAY = (
    "--upstream http://HOST:PORT/v1 (or CANOPY_UPSTREAM; a key goes into CANOPY_UPSTREAM_KEY)"
)
UPSTREAM_HELP = "openai engine: the OpenAI-compatible server that answers, http://HOST:PORT/v1."
NODES_HELP = f"Worker processes a model. Default: one a GPU, or {devices.USUAL_NODES} without any."
DEVICE_HELP = "auto, cpu, cuda:0, ...; cuda:0,cuda:1 spreads the layers over both."
TENSOR_PARALLEL_HELP = "Processes, one a device, that divide the model among them."
SLOTS_HELP = (
    "Answers a worker writes at the same time: N, or auto: what a GPU's memory allows, else 8."
)
API_PROCESSES_HELP = "Processes that serve HTTP on the same port; more use more cores."
PRECISIONS = ("auto", "float32", "bfloat16", "int8", "int8-fast")
PRECISION_HELP = f"transformers engine on a CPU, the numbers it computes in: {', '.join(PRECISIONS)}. Default: auto."
_DOWN_SECONDS = 12.0  # a little more than the launcher takes at most


def add_to(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    for command in (up_command, down, status, doctor):
        app.command(name=command.__name__.removesuffix("_command"))(command)


def up_command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to serve: a name, a folder, a Hugging Face id. Repeat for several; each gets a tree."
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="transformers, openai (see --upstream), echo (repeats the question), or an.engine.module."
        ),
    ] = "transformers",
    nodes: Annotated[int | None, typer.Option(min=1, max=500, help=NODES_HELP)] = None,
    fanout: Annotated[
        int | None,
        typer.Option(min=1, help="Children a node at most; without it all hang below the root."),
    ] = None,
    slots: Annotated[str, typer.Option(metavar="N|auto", help=SLOTS_HELP)] = "auto",
    standby: Annotated[
        int,
        typer.Option(min=0, max=9, help="Roots a model that wait to take over if the root dies."),
    ] = 0,
    policy: Annotated[
        str | None, typer.Option(help=f"Dispatch rule: {', '.join(POLICIES)}.")
    ] = None,
    device: Annotated[str | None, typer.Option(help=DEVICE_HELP)] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the pages and the API.")
    ] = 8000,
    host: Annotated[
        str, typer.Option(help="Address of the API; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    listen: Annotated[
        str, typer.Option(help="Address of the broker; 0.0.0.0 lets other machines add workers.")
    ] = "127.0.0.1",
    token_delay: Annotated[
        float | None, typer.Option(min=0, help="Seconds between words of the echo engine.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(envvar="CANOPY_PRECISION", help=PRECISION_HELP)
    ] = None,
    upstream: Annotated[
        str | None, typer.Option(envvar="CANOPY_UPSTREAM", help=UPSTREAM_HELP)
    ] = None,
    upstream_model: Annotated[
        str | None,
        typer.Option(envvar="CANOPY_UPSTREAM_MODEL", help="The model's name on that server."),
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, max=64, help=TENSOR_PARALLEL_HELP)] = 1,
    api_processes: Annotated[int, typer.Option(min=1, max=64, help=API_PROCESSES_HELP)] = 1,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when ready; ./canopy down stops it.")
    ] = False,
) -> None:
    """Prepare what is missing, then start broker, root, workers and API. Ctrl-C stops everything it started."""
    if engine not in ENGINES and "." not in engine:  # with a dot: a module of one's own
        raise CliError(
            f"There is no engine {engine!r}; choose one of {', '.join(ENGINES)}.", code=2
        )
    if engine == "openai" and not upstream:
        raise CliError(f"The openai engine needs a server; say {UPSTREAM_WAY}", code=2)
    if tensor_parallel > 1 and engine != "transformers":
        raise CliError("--tensor-parallel is for the transformers engine alone.", code=2)
    if policy is not None and policy not in POLICIES:
        raise CliError(
            f"There is no policy {policy!r}; choose one of {', '.join(POLICIES)}.", code=2
        )
    gpus = machine_gpus.count()
    home = homes.read()
    models = [
        Model(asked) for asked in model or [DEFAULT_MODEL if engine == "transformers" else engine]
    ]
    request = Request(
        models=dict.fromkeys((each.name for each in models), None),
        asked=_asked(models),
        engine=engine,
        nodes=nodes or devices.usual_nodes(engine, device, gpus, tensor_parallel),
        fanout=fanout,
        slots=check_slots(slots),
        policy=policy,
        device=device,
        gpus=gpus,
        token_delay=token_delay,
        precision=check_precision(precision),
        upstream=upstream,
        upstream_model=upstream_model,
        tensor_parallel=tensor_parallel,
        host=ports.without_brackets(host),
        port=port,
        listen=ports.resolved(listen),
        standby=standby,
        api_processes=api_processes,
        public_url=os.environ.get("CANOPY_PUBLIC_URL", ""),
    )
    with locking.held(home) as lock:  # a second `up` is refused here
        up.check(request, home)
        files = models if engine == "transformers" else []
        up.prepare(files, home)
        if detach:
            up.detach(home, lock)
        else:
            up.run(request.with_folders({each.name: each.folder for each in files}), home)


def down() -> None:
    """Stop what `up` started here, also what is still starting."""
    home = homes.read()
    started = time.monotonic()
    everything = instance.recorded_processes(home)
    if _end_launchers(home):
        instance.end(everything, within=2.0)  # should the launcher have been killed
        print(f"stopped in {time.monotonic() - started:.1f} s")
        return
    left = _end_leftovers(home)
    print(f"ended what a killed launcher left: {', '.join(left)}" if left else "nothing runs here")


def _end_launchers(home: Home) -> bool:
    """Ends whoever holds the lock, until nobody does; False if nobody did. Raises CliError.

    A launcher may hand the lock on while it starts: then the next holder gets the signal, too.
    """
    signalled: set[locking.Holder] = set()
    deadline = time.monotonic() + _DOWN_SECONDS
    while locking.is_held(home):
        holder = locking.holder(home)
        if holder and holder not in signalled:
            signalled.add(holder)
            deadline = time.monotonic() + _DOWN_SECONDS
            _send(holder, signal.SIGTERM)
        if time.monotonic() > deadline:
            if holder is None:
                raise CliError(f"Something holds {home.lock_file}, and does not say what it is.")
            _send(holder, signal.SIGKILL)
            deadline = time.monotonic() + _DOWN_SECONDS
        time.sleep(0.05)
    return bool(signalled)


def _send(holder: locking.Holder, number: signal.Signals) -> None:
    if holder.lives():
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder.pid, number)


def status(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """What runs here, and how to reach and to extend it."""
    home = homes.read()
    record = instance.read(home)
    if as_json:
        state = {"running": record is not None, "starting": bool(_starting(home)) and not record}
        print(json.dumps({"home": str(home.path), **state, **_public(home, record)}, indent=1))
    elif record is None:
        print(_starting(home) or f"nothing runs here ({home.path}); start it with ./canopy up")
    else:
        _print_status(home, record)


def _starting(home: Home) -> str:
    """What to say of an instance that is on its way up or down; nothing if there is none."""
    if not locking.is_held(home):
        return ""
    holder = locking.holder(home)
    return f"starting or stopping (pid {holder.pid})" if holder else "starting or stopping"


def doctor() -> None:
    """What this machine lacks, one line each with the remedy."""
    raise typer.Exit(doctoring.main())


def _print_status(home: Home, record: dict[str, Any]) -> None:
    facts = _public(home, record)
    print(
        f"Canopy runs: {facts['url']}  (since {time.strftime('%Y-%m-%d %H:%M', time.localtime(facts['started']))})"
    )
    print(f"models: {', '.join(facts['models'])}   state: {home.path}")
    for process in facts["processes"]:
        alive = (
            f"pid {process['pid']:<8} {process['memory_mb']:>6.0f} MB" if process["running"] else ""
        )
        state = "" if process["state"] == "running" else process["state"]
        print(f"  {process['name']:<14} {'  '.join(filter(None, (alive, state)))}")
    for problem in tree.problems():
        print(f"problem: {problem}")
    print("one more worker on a machine that reaches the broker:")
    for line in joining.lines(record):
        print(f"  {line}")
    if record.get("listen") in ("127.0.0.1", "::1", "localhost"):
        print(
            "  (the broker listens on this machine only; start with --listen 0.0.0.0 to add other machines)"
        )


def _public(home: Home, record: dict[str, Any] | None) -> dict[str, Any]:
    if record is None:
        return {"url": None, "processes": []}
    return {
        "pid": record["pid"],
        "started": record["started"],
        "url": record["url"],
        "port": record["port"],
        "models": record["models"],
        "processes": [_process(each) for each in instance.recorded_processes(home)],
        "join": joining.lines(record)[0],
        "joins": joining.lines(record),
    }


def _process(recorded: instance.Recorded) -> dict[str, Any]:
    process = recorded.process()
    memory = 0.0
    if process:
        try:
            memory = process.memory_info().rss / 1e6
        except psutil.Error:
            process = None
    return {
        "name": recorded.name,
        "pid": recorded.pid,
        "running": process is not None,
        "state": "not running"
        if process is None and recorded.state == "running"
        else recorded.state,
        "memory_mb": round(memory, 1),
    }


def _asked(models: list[Model]) -> dict[str, str]:
    """Public name -> what --model said. Raises CliError for two folders of one name."""
    asked: dict[str, str] = {}
    for model in models:
        if asked.setdefault(model.name, model.asked) != model.asked:
            raise CliError(
                f"{asked[model.name]} and {model.asked} would both be called {model.name!r}; "
                "rename one of the folders.",
                code=2,
            )
    return asked


def _end_leftovers(home: Home) -> list[str]:
    if not home.run.exists():
        return []
    with locking.held(home):
        return instance.end_leftovers(home)


def check_slots(slots: str) -> int | None:
    """The number; None for "auto". Raises CliError for anything else."""
    if slots == "auto":
        return None
    if not (slots.isascii() and slots.isdecimal()) or int(slots) < 1:
        raise CliError(f"--slots must be a number from 1 up, or auto, not {slots!r}.", code=2)
    return int(slots)


def check_precision(precision: str | None) -> str | None:
    """As it is. Raises CliError for a word that is none."""
    if precision and precision not in PRECISIONS:
        raise CliError(
            f"There is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}.", code=2
        )
    return precision
