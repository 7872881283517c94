"""What `up` was asked for, as the list of programs to run. Decides; starts nothing."""

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from broker.management import Edges
from cli import devices
from cli.home import Home
from cli.ports import host_and_port, reachable
from cli.process import Spec
from cli.rabbitmq import Broker
from topology import shape
from topology.names import root_name

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_READY = re.compile(r"""(\[info\s*\]\s+|"event": "|event=')(ready|standby)\b""")
# asyncio receives into a new 256 KiB buffer each time and keeps the few bytes that came. By itself glibc soon takes
# such buffers from the heap, where small things that live longer settle between them, and the heap grows and grows.
_BUFFERS_APART = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
# Threads that compute a layer wait for each other by spinning, by themselves for milliseconds. If something else wants
# a core meanwhile, they keep it from the very thread that they wait for: a step of 70 ms was seen to take 900.
SPINS = "5000"  # some 50 microseconds, about as long as the small operations between two layers; then they sleep
WAIT_SECONDS = 60  # a node tries for so long to find the broker and its parent: all of them start at the same time


@dataclass(frozen=True)
class Request:
    """The options of `up`. `models`: public name -> folder (None for an engine that needs no files)."""

    models: Mapping[str, Path | None]
    asked: Mapping[str, str] = field(default_factory=dict)  # public name -> what --model said
    engine: str = "transformers"
    nodes: int = devices.USUAL_NODES
    fanout: int | None = None
    slots: int | None = None  # None: each node's engine finds out
    policy: str | None = None
    device: str | None = None
    gpus: int = 0  # that the machine has; where no device is named, nodes take them in turn
    token_delay: float | None = None
    precision: str | None = None
    upstream: str | None = None
    upstream_model: str | None = None
    tensor_parallel: int = 1
    host: str = "127.0.0.1"
    port: int = 8000
    listen: str = "127.0.0.1"
    standby: int = 0  # roots a model that wait for the root's name
    api_processes: int = 1
    public_url: str = ""  # CANOPY_PUBLIC_URL: how people reach a proxy before the API

    def with_folders(self, folders: Mapping[str, Path | None]) -> "Request":
        """The same request once its models are prepared."""
        return replace(self, models={**self.models, **folders})

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the API."""
        return f"http://{host_and_port(reachable(self.host), self.port)}"

    @property
    def address(self) -> str:
        """Where people log in: the proxy's address, as cookies are for it alone; else `url`."""
        return self.public_url.rstrip("/") or self.url

    @property
    def roots(self) -> dict[str, str]:
        """Each model's root by the model's public name."""
        return {model: root_name(model, _first(self)) for model in self.models}


@dataclass(frozen=True)
class Plan:
    """The programs. Nodes wait for their parents by themselves, so the order among them does not matter."""

    migrate: Spec
    login_token: Spec
    apis: list[Spec]
    roots: list[Spec]
    nodes: list[Spec]


def make(request: Request, home: Home, broker: Broker, listener: int) -> Plan:
    """Lays the programs out. `listener`: the number of the open socket on which the API listens."""
    common = {"CANOPY_HOME": str(home.path)}
    api_env = {
        **common,
        "CANOPY_AMQP_URL": broker.amqp["api"],
        "CANOPY_MODELS": json.dumps(list(request.models)),
        "CANOPY_PORT": str(request.port),
        **_hosts(request),
        **(
            {"CANOPY_MANAGEMENT_URL": broker.management["api"]}
            if "api" in broker.management
            else {}
        ),
    }
    processes = request.nodes * len(request.models)
    node_env = {
        **common,
        "CANOPY_AMQP_URL": broker.amqp["node"],
        "CANOPY_GPU_NODES": os.environ.get("CANOPY_GPU_NODES")
        or str(devices.most_on_one(_devices(request))),
        "CANOPY_THREADS": os.environ.get("CANOPY_THREADS")
        or str(max(1, (os.cpu_count() or 1) // processes)),
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT") or SPINS,
        **({"CANOPY_PRECISION": request.precision} if request.precision else {}),
    }
    return Plan(
        migrate=Spec("migrate", [*_python("api"), "migrate"], api_env),
        login_token=Spec("login-token", [*_python("api"), "login-token"], api_env, secret=True),
        apis=_apis(request, listener, api_env),
        roots=_roots(request, node_env),
        nodes=_nodes(request, node_env),
    )


def edges(request: Request) -> Edges:
    """The edges that the nodes of `request` will make."""
    roots = {root: model for model, root in request.roots.items()}
    return Edges(roots, dict(_parents(request)), frozenset(), frozenset())


def is_ready_line(line: str) -> bool:
    """Whether a log line of a node or of the API is its event `ready`, or that of a root that waits for its name,
    `standby`: on the console (`[info     ] ready`), as JSON, or as fields (`event='ready'`).
    """
    return bool(_READY.search(_COLOURS.sub("", line)))


def _apis(request: Request, listener: int, env: Mapping[str, str]) -> list[Spec]:
    """All of them accept on one socket, so a process that is down holds no connection back."""
    api = Spec(
        "api",
        [*_python("api"), "serve", "--fd", str(listener)],
        {**env, **_BUFFERS_APART},
        is_ready=is_ready_line,
        at_death_of_launcher=signal.SIGTERM,  # it answers what waits, and ends
        inherits=(listener,),
        beats=True,
    )
    others = range(2, request.api_processes + 1)
    return [api, *(replace(api, name=f"api-{number}") for number in others)]


def _hosts(request: Request) -> dict[str, str]:
    """Names by which other machines may call a service that listens beyond this one."""
    if os.environ.get("CANOPY_HOSTS"):
        return {}
    if request.host not in ("0.0.0.0", "::"):  # noqa: S104 - a comparison
        return {"CANOPY_HOSTS": f"[{request.host}]" if ":" in request.host else request.host}
    names = dict.fromkeys((socket.gethostname(), socket.getfqdn(), *_addresses()))
    return {"CANOPY_HOSTS": " ".join(names)}


def _addresses() -> list[str]:
    """This machine's addresses as they stand in a Host header."""
    found = []
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family == socket.AF_INET:
                found.append(entry.address)
            elif entry.family == socket.AF_INET6:
                found.append(
                    f"[{entry.address.partition('%')[0]}]"
                )  # a zone is for this machine alone
    return found


def _roots(request: Request, env: Mapping[str, str]) -> list[Spec]:
    """With standbys all of a model's roots are equal: whoever has the name serves, the others wait for it."""
    standby = ["--standby"] if request.standby else []
    specs = []
    for model in request.models:
        name = root_name(model, _first(request))
        root = _node(
            request,
            {**env, **_BUFFERS_APART},
            name,
            ["--engine", "none", "--model", model, *standby],
        )
        others = (f"{name}-standby-{number}" for number in range(1, request.standby + 1))
        specs += [root, *(replace(root, name=each) for each in others)]
    return specs


def _nodes(request: Request, env: Mapping[str, str]) -> list[Spec]:
    specs = []
    models = [each for each in request.models.items() for _ in range(request.nodes)]
    for (name, parent), (model, folder), device in zip(
        _parents(request), models, _devices(request), strict=True
    ):
        options = ["--parent", parent, "--model", model, *_engine(request, folder, device)]
        specs.append(_node(request, env, name, options))
    return specs


def _parents(request: Request) -> Iterator[tuple[str, str]]:
    """Every node with its parent, tree by tree. Names are unique across trees: n1, n2 | n3, n4."""
    for tree, model in enumerate(request.models):
        root = root_name(model, _first(request))
        offset = tree * request.nodes
        for position in range(1, request.nodes + 1):
            yield (
                f"n{position + offset}",
                _shift(shape.parent_of(position, fanout=request.fanout, root=root), offset, root),
            )


def _devices(request: Request) -> Sequence[str | None]:
    """A device a node, in the order of their names, on through all trees."""
    nodes = request.nodes * len(request.models)
    if devices.may_choose(request.engine, request.device):
        return devices.deal(nodes, request.gpus, request.tensor_parallel)
    return [request.device] * nodes


def _engine(request: Request, folder: Path | None, device: str | None) -> list[str]:
    options = ["--engine", request.engine, "--slots", str(request.slots or "auto")]
    options += ["--model-path", str(folder)] if folder else []
    options += ["--device", device] if device else []
    options += (
        ["--token-delay", str(request.token_delay)] if request.token_delay is not None else []
    )
    if request.engine == "openai":
        options += ["--upstream", request.upstream] if request.upstream else []
        options += ["--upstream-model", request.upstream_model] if request.upstream_model else []
    options += (
        ["--tensor-parallel", str(request.tensor_parallel)] if request.tensor_parallel > 1 else []
    )
    return options


def _shift(name: str, offset: int, root: str) -> str:
    return name if name == root else f"n{int(name.removeprefix('n')) + offset}"


def _node(request: Request, env: Mapping[str, str], name: str, options: list[str]) -> Spec:
    policy = ["--policy", request.policy] if request.policy else []
    command = [*_python("worker"), "--name", name, *options, *policy, "--wait", str(WAIT_SECONDS)]
    return Spec(name, command, env, is_ready=is_ready_line, beats=True)


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def _first(request: Request) -> str:
    return next(iter(request.models))
