"""From the options of `up` to the programs to run. Decides, starts nothing."""

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
from cli import devices, environment
from cli.environment import Environment
from cli.home import Home
from cli.ports import EVERY_ADDRESS, host_and_port, reachable
from cli.process import Spec
from cli.rabbitmq import Broker
from topology import shape
from topology.names import root_name

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_READY = re.compile(r"""(\[info\s*\]\s+|"event": "|event=')(ready|standby)\b""")
# asyncio receives into a new 256 KiB buffer each time. glibc soon takes such buffers from the heap,
# where small long-lived objects settle between them and keep it from shrinking; mmap avoids that.
_LARGE_BUFFERS_BY_MMAP = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
# OpenMP threads wait for each other by spinning, for milliseconds by default. On a busy machine
# they keep a core from the very thread that they wait for: a step of 70 ms took 900.
OPENMP_SPIN_COUNT = "5000"  # about 50 us, as long as the small operations between two layers
WAIT_SECONDS = 60  # for the broker and the parent: all programs start at the same time


@dataclass(frozen=True)
class Request:
    """The options of `up`. `models`: public name -> folder, None where the engine needs none."""

    models: Mapping[str, Path | None]
    model_arguments: Mapping[str, str] = field(default_factory=dict)  # public name -> --model
    engine: str = "transformers"
    nodes: int = devices.NODES_WITHOUT_GPU  # per model
    fanout: int | None = None
    slots: int | None = None  # None: each engine decides
    policy: str | None = None
    device: str | None = None
    gpus: int = 0  # of this machine, assigned round-robin where `device` names none
    token_delay: float | None = None
    precision: str | None = None
    kv_cache_dtype: str | None = None
    memory_fraction: float | None = None
    upstream: str | None = None
    upstream_model: str | None = None
    tensor_parallel: int = 1
    task: str = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    listen: str | None = None  # where other machines reach our broker
    tls_files: tuple[Path, Path] | None = None  # the operator's certificate and key for it
    tunnel: bool = False  # other machines may reach the broker through the API
    standby: int = 0  # roots per model that wait for the root's name
    api_processes: int = 1
    public_url: str = ""  # of a proxy in front of the API
    allowed_models: Mapping[str, str] = field(default_factory=dict)  # also, for operators
    max_nodes: int = 64  # on this machine, with those that operators start

    def with_folders(self, folders: Mapping[str, Path | None]) -> "Request":
        """This request with the folders of its prepared models."""
        return replace(self, models={**self.models, **folders})

    @property
    def url(self) -> str:
        """The API's URL on this machine."""
        return f"http://{host_and_port(reachable(self.host), self.port)}"

    @property
    def address(self) -> str:
        """The URL at which users log in: the proxy's if there is one, as cookies belong to it."""
        return self.public_url.rstrip("/") or self.url

    @property
    def roots(self) -> dict[str, str]:
        """The name of each model's root, by the model's public name."""
        first = next(iter(self.models))
        return {model: root_name(model, first) for model in self.models}


@dataclass(frozen=True, slots=True)
class NewNode:
    """A node to be started later. `folder`: of its model, where the engine needs one."""

    name: str
    model: str
    parent: str | None
    slots: int | None
    device: str
    folder: Path | None


@dataclass(frozen=True)
class Plan:
    """The programs. Nodes wait for their parents, so their order does not matter."""

    migrate: Spec
    login_token: Spec
    apis: list[Spec]
    roots: list[Spec]
    nodes: list[Spec]


def make(request: Request, home: Home, broker: Broker, listener: int) -> Plan:
    """Lays out the programs. `listener`: the descriptor of the socket that the API serves."""
    env = environment.read()
    api_env = _api_environment(request, home, broker, env)
    node_env = _node_environment(request, home, broker, env)
    return Plan(
        migrate=Spec("migrate", _python("api") + ["migrate"], api_env),
        login_token=Spec("login-token", _python("api") + ["login-token"], api_env, secret=True),
        apis=_apis(request, listener, api_env),
        roots=_roots(request, node_env),
        nodes=_nodes(request, node_env),
    )


def _api_environment(
    request: Request, home: Home, broker: Broker, env: Environment
) -> dict[str, str]:
    variables = {
        "CANOPY_HOME": str(home.path),
        "CANOPY_AMQP_URL": broker.amqp["api"],
        "CANOPY_MODELS": json.dumps(list(request.models)),
        "CANOPY_PORT": str(request.port),
        "CANOPY_TUNNEL": "1" if request.tunnel else "",
    }
    if not env.hosts:
        hosts = _hosts(request.host)
        if hosts:
            variables["CANOPY_HOSTS"] = " ".join(hosts)
    if "api" in broker.management:
        variables["CANOPY_MANAGEMENT_URL"] = broker.management["api"]
    return variables


def _node_environment(
    request: Request, home: Home, broker: Broker, env: Environment
) -> dict[str, str]:
    processes = max(1, request.nodes) * len(request.models)
    threads = max(1, (os.cpu_count() or 1) // processes)
    variables = {
        "CANOPY_HOME": str(home.path),
        "CANOPY_AMQP_URL": broker.amqp["node"],
        "CANOPY_GPU_NODES": env.gpu_nodes or str(devices.most_on_one(_devices(request))),
        "CANOPY_THREADS": env.threads or str(threads),
        "GOMP_SPINCOUNT": env.spin_count or OPENMP_SPIN_COUNT,
    }
    if request.precision:
        variables["CANOPY_PRECISION"] = request.precision
    if request.kv_cache_dtype:
        variables["CANOPY_KV_CACHE_DTYPE"] = request.kv_cache_dtype
    if request.memory_fraction is not None:
        variables["CANOPY_MEMORY_FRACTION"] = str(request.memory_fraction)
    return variables


def added_node(request: Request, home: Home, broker: Broker, new: NewNode) -> Spec:
    """A node that is started while the instance runs, or a root if it has no parent."""
    env = _node_environment(request, home, broker, environment.read())
    if new.parent is None:
        options = ["--engine", "none", "--tree-engine", request.engine, "--model", new.model]
        return _node(request, {**env, **_LARGE_BUFFERS_BY_MMAP}, new.name, options)
    request = replace(request, slots=new.slots or request.slots)
    options = ["--parent", new.parent, "--model", new.model]
    options += _engine_options(request, new.folder, new.device or request.device)
    return _node(request, env, new.name, options)


def edges(request: Request) -> Edges:
    """The edges of the tree that `request` describes."""
    roots = {root: model for model, root in request.roots.items()}
    return Edges(roots, dict(_parents(request)), frozenset(), frozenset())


def is_ready_line(line: str) -> bool:
    """Whether a log line is the event `ready`, or `standby` of a root that waits for its name.

    It may be for the console (`[info     ] ready`), JSON, or fields (`event='ready'`).
    """
    return bool(_READY.search(_COLOURS.sub("", line)))


def _apis(request: Request, listener: int, env: Mapping[str, str]) -> list[Spec]:
    """All of them accept on one socket, so no connection waits for a process that is down."""
    api = Spec(
        "api",
        _python("api") + ["serve", "--fd", str(listener)],
        {**env, **_LARGE_BUFFERS_BY_MMAP},
        is_ready=is_ready_line,
        at_death_of_launcher=signal.SIGTERM,  # it answers open requests first
        inherits=(listener,),
        beats=True,
    )
    specs = [api]
    for number in range(2, request.api_processes + 1):
        name = f"api-{number}"
        specs.append(replace(api, name=name, env={**api.env, "CANOPY_PROCESS": name}))
    return specs


def _hosts(host: str) -> list[str]:
    """The Host headers under which other machines may reach the API."""
    if host in EVERY_ADDRESS:
        return list(dict.fromkeys((socket.gethostname(), socket.getfqdn(), *_addresses())))
    if ":" in host:
        return [f"[{host}]"]
    return [host]


def _addresses() -> list[str]:
    """This machine's addresses as in a Host header."""
    addresses = []
    for interface in psutil.net_if_addrs().values():
        for entry in interface:
            if entry.family == socket.AF_INET:
                addresses.append(entry.address)
            elif entry.family == socket.AF_INET6:
                without_zone, _, _ = entry.address.partition("%")
                addresses.append(f"[{without_zone}]")
    return addresses


def _roots(request: Request, env: Mapping[str, str]) -> list[Spec]:
    """With standbys all roots of a model are equal: the one with the name serves, others wait."""
    env = {**env, **_LARGE_BUFFERS_BY_MMAP}
    specs = []
    for model, name in request.roots.items():
        options = ["--engine", "none", "--tree-engine", request.engine, "--model", model]
        if request.standby:
            options.append("--standby")
        root = _node(request, env, name, options)
        specs.append(root)
        for number in range(1, request.standby + 1):
            specs.append(replace(root, name=f"{name}-standby-{number}"))
    return specs


def _nodes(request: Request, env: Mapping[str, str]) -> list[Spec]:
    specs = []
    devices_in_order = iter(_devices(request))
    parents = _parents(request)
    for model, folder in request.models.items():
        for _ in range(request.nodes):
            name, parent = next(parents)
            options = ["--parent", parent, "--model", model]
            options += _engine_options(request, folder, next(devices_in_order))
            specs.append(_node(request, env, name, options))
    return specs


def _parents(request: Request) -> Iterator[tuple[str, str]]:
    """Every node with its parent, tree by tree. Names are unique across trees: n1, n2 | n3, n4."""
    for tree, root in enumerate(request.roots.values()):
        offset = tree * request.nodes
        for position in range(1, request.nodes + 1):
            parent = shape.parent_of(position, fanout=request.fanout, root=root)
            yield f"n{position + offset}", _shift(parent, offset, root)


def _devices(request: Request) -> Sequence[str | None]:
    """The device of each node, in the order of their names, across all trees."""
    nodes = request.nodes * len(request.models)
    if devices.may_choose(request.engine, request.device):
        return devices.assign(nodes, request.gpus, request.tensor_parallel)
    return [request.device] * nodes


def _engine_options(request: Request, folder: Path | None, device: str | None) -> list[str]:
    words = ["--engine", request.engine, "--slots", str(request.slots or "auto")]
    if folder:
        words += ["--model-path", str(folder)]
    if device:
        words += ["--device", device]
    if request.token_delay is not None:
        words += ["--token-delay", str(request.token_delay)]
    if request.engine == "openai" and request.upstream:
        words += ["--upstream", request.upstream]
        if request.upstream_model:
            words += ["--upstream-model", request.upstream_model]
    if request.task != "auto":
        words += ["--task", request.task]
    if request.tensor_parallel > 1:
        words += ["--tensor-parallel", str(request.tensor_parallel)]
    return words


def _shift(name: str, offset: int, root: str) -> str:
    if name == root:
        return root
    return f"n{int(name.removeprefix('n')) + offset}"


def _node(request: Request, env: Mapping[str, str], name: str, options: list[str]) -> Spec:
    command = _python("worker") + ["--name", name] + options + ["--wait", str(WAIT_SECONDS)]
    if request.policy:
        command += ["--policy", request.policy]
    return Spec(name, command, env, is_ready=is_ready_line, beats=True)


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]
