"""Who is measured: which programs with which settings, and how they are started."""

import contextlib
import json
import selectors
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench import extras, harness
from bench.dispatch.loop import Block, Result
from bench.errors import NotStarted
from bench.harness import Instance
from cli.home import REPOSITORY

PEERS = ("celery==5.7.0", "dramatiq[rabbitmq]==2.2.1", "gevent==26.9.0")
BARE, CANOPY, CELERY, DRAMATIQ = "bare AMQP", "Canopy", "Celery", "dramatiq"
_READY_SECONDS = 60.0
_SPARE_SECONDS = 120.0  # by which a block may exceed its length


@dataclass(frozen=True)
class Contender:
    """One way to have a job done through the broker.

    `hops`: queues that a job passes on its way down. `workers` and `driver` are command lines; the
    driver speaks as `loop.serve` does. `pids`: processes that are running already.
    """

    name: str
    family: str
    hops: int
    settings: str
    workers: Sequence[Sequence[str]]
    driver: Sequence[str]
    environment: Mapping[str, str]
    pids: Sequence[int] = field(default=())


def all_contenders(canopy: Instance, slots: int, only: Sequence[str]) -> list[Contender]:
    """Those whose name contains one of `only`, or all, in the order of the tables.

    Installs the peers if one is measured. Raises NotStarted.
    """
    admin = {"BENCH_AMQP_URL": canopy.amqp("admin")}
    ours = [_bare(hops, admin) for hops in (1, 2, 3)]
    ours += [_tree(canopy, hops, "hold-high", slots) for hops in (1, 2, 3)]
    ours.append(_tree(canopy, 2, "paper", slots))
    ours += [_http(canopy, path) for path in ("/v1/chat/completions", "/arranca/")]
    python = extras.python_of("dispatch")
    peers = [_celery(python, admin, pool) for pool in ("threads", "gevent", "prefork")]
    peers += [_dramatiq(python, admin, confirmed) for confirmed in (False, True)]
    peers = [peer for peer in peers if _is_chosen(peer, only)]
    if peers:
        extras.environment("dispatch", *PEERS)
    return [contender for contender in ours if _is_chosen(contender, only)] + peers


def _is_chosen(contender: Contender, only: Sequence[str]) -> bool:
    return not only or any(word.lower() in contender.name.lower() for word in only)


def _module(python: Path | str, name: str, *words: str) -> list[str]:
    return [str(python), "-P", "-m", name, *words]


def _bare(hops: int, environment: Mapping[str, str]) -> Contender:
    module = "bench.dispatch.bare"
    numbers = [str(number) for number in range(1, hops + 1)]
    return Contender(
        name=f"{BARE}, {hops} hops",
        family=BARE,
        hops=hops,
        settings="pika alone: persistent, mandatory + confirmed on every hop, prefetch 256",
        workers=[_module(sys.executable, module, str(hops), number) for number in numbers],
        driver=_module(sys.executable, module, str(hops)),
        environment=environment,
    )


def _tree(canopy: Instance, hops: int, policy: str, slots: int) -> Contender:
    """A chain of nodes, of which the last has the engine; of one hop: a root with the engine."""
    model = f"bench-{policy}-{hops}"
    workers = []
    parent = ""
    for number in range(1, hops + 1):
        name = f"{model}-{number}"
        engine = "echo" if number == hops else "none"
        words = ["--name", name, "--model", model, "--policy", policy, "--engine", engine]
        words += ["--slots", str(slots), "--wait", "30"]
        if parent:
            words += ["--parent", parent]
        workers.append(_module(sys.executable, "worker", *words))
        parent = name
    urls = {"BENCH_AMQP_URL": canopy.amqp("api"), "CANOPY_AMQP_URL": canopy.amqp("node")}
    return Contender(
        name=f"{CANOPY} {policy}, {hops} hops",
        family=CANOPY,
        hops=hops,
        settings=f"a chain of {hops} nodes, echo without delay, {slots} slots",
        workers=workers,
        driver=_module(sys.executable, "bench.dispatch.canopy_driver", model),
        environment=urls,
    )


def _http(canopy: Instance, path: str) -> Contender:
    pids = canopy.pids()
    words = (str(canopy.port), path, canopy.model)
    return Contender(
        name=f"{CANOPY} HTTP {path}",
        family=CANOPY,
        hops=2,
        settings="whole answers of one token; API, root and a node",
        workers=[],
        driver=_module(sys.executable, "bench.dispatch.http_driver", *words),
        environment={"BENCH_KEY": canopy.key},
        pids=[*pids["api"], *pids["root"], *pids["n1"]],
    )


def _celery(python: Path, environment: Mapping[str, str], pool: str) -> Contender:
    """Tuned for short tasks; or, with the pool `prefork`, as it starts by default."""
    module = "bench.dispatch.celery_peer"
    words = ["-A", module, "worker", "--loglevel", "WARNING", "--hostname", f"{pool}@bench"]
    settings = "a process a core, prefetch 4 each, early acks; persistent, unconfirmed"
    if pool != "prefork":
        size = "8" if pool == "threads" else "100"
        words += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        words += ["--pool", pool, "--concurrency", size]
        settings = f"{size} {pool}, prefetch 128 each, acks_late; persistent, unconfirmed"
    tuned = {"BENCH_TUNED": str(int(pool != "prefork")), "BENCH_QUEUE": f"bench.celery.{pool}"}
    return Contender(
        name=f"{CELERY} rpc, {pool}",
        family=CELERY,
        hops=1,
        settings=settings,
        workers=[_module(python, "celery", *words)],
        driver=_module(python, module),
        environment={**environment, **tuned},
    )


def _dramatiq(python: Path, environment: Mapping[str, str], confirmed: bool) -> Contender:
    module = "bench.dispatch.dramatiq_peer"
    mode = "confirmed" if confirmed else "unconfirmed"
    variables = {
        "BENCH_CONFIRM": str(int(confirmed)),
        "BENCH_QUEUE": f"bench.dramatiq.{mode}",
        "dramatiq_queue_prefetch": "128",
    }
    return Contender(
        name=f"{DRAMATIQ}, {mode}",
        family=DRAMATIQ,
        hops=1,
        settings=f"2 processes of 8 threads, prefetch 128 each, reply queue; persistent, {mode}",
        workers=[_module(python, "dramatiq", module, "--processes", "2", "--threads", "8")],
        driver=_module(python, module),
        environment={**environment, **variables},
    )


class RunningContender:
    """A contender whose driver has had its first answer."""

    def __init__(
        self,
        contender: Contender,
        workers: Sequence[int],
        driver: "subprocess.Popen[str]",
        log: Path,
    ) -> None:
        self.contender = contender
        self._driver = driver
        self._log = log
        self._read(_READY_SECONDS)
        families = [*contender.pids, *workers]
        for pid in workers:
            families += [process.pid for process in psutil.Process(pid).children(recursive=True)]
        self.pids = {"driver": [driver.pid], "workers": families}

    def measure(self, block: Block) -> Result:
        """Raises NotStarted if the driver has ended or stays silent."""
        assert self._driver.stdin is not None  # noqa: S101 - it is a pipe
        try:
            self._driver.stdin.write(json.dumps(asdict(block)) + "\n")
            self._driver.stdin.flush()
        except OSError:
            raise self._failure() from None
        return Result(**self._read(block.seconds + _SPARE_SECONDS))

    def _read(self, seconds: float) -> dict[str, Any]:
        output = self._driver.stdout
        assert output is not None  # noqa: S101 - it is a pipe
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            line = output.readline() if selector.select(seconds) else ""
        if not line:
            raise self._failure()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self) -> NotStarted:
        lines = self._log.read_text(errors="replace").strip().splitlines() or ["no output"]
        return NotStarted(f"{self.contender.name} does not answer: {lines[-1]}")


@contextlib.contextmanager
def running(contender: Contender, logs: Path) -> Iterator[RunningContender]:
    """Its workers and its driver, for as long as the block runs. Raises NotStarted."""
    log = logs / f"bench-{contender.name.replace(' ', '-').replace('/', '-')}.log"
    environment = harness.clean_environment(**contender.environment)
    environment["PYTHONPATH"] = str(REPOSITORY)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with contextlib.ExitStack() as stack, log.open("w") as file:
        pids = []
        for command in contender.workers:
            worker = harness.child(command, environment, stdout=file, stderr=file)
            pids.append(stack.enter_context(worker).pid)
        driver = harness.child(contender.driver, environment, stderr=file, **pipes)
        yield RunningContender(contender, pids, stack.enter_context(driver), log)
