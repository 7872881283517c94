"""Who is measured: which programs, and how they are started."""

import contextlib
import json
import selectors
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from bench import harness
from bench.dispatch.loop import Block, Result
from bench.errors import NotStarted
from bench.harness import Instance
from bench.report import say
from cli import home as homes
from cli.home import REPOSITORY

CELERY = "celery==5.7.0"
CANOPY = "Canopy"  # the broker client of the API, a root, a node; `echo` without delay
_WARM_UP = Block(in_flight=100, seconds=0.5)
_SPARE_SECONDS = 120.0  # by which a block may exceed its length


@dataclass(frozen=True)
class Contender:
    """A way to have jobs done, as command lines. `pids`: of workers that run already. `viewers`:
    people who watch the tree meanwhile.
    """

    name: str
    driver: Sequence[str]
    environment: Mapping[str, str]
    workers: Sequence[Sequence[str]] = ()
    pids: Sequence[int] = ()
    viewers: int = 0


def all_contenders(canopy: Instance, only: str, viewers: int) -> list[Contender]:
    """Those with `only` in their name. Installs Celery if it is measured. Raises NotStarted."""
    admin = {"BENCH_AMQP_URL": canopy.record["amqp"]["admin"]}
    api = {"BENCH_AMQP_URL": canopy.record["amqp"]["api"]}
    pids = canopy.pids()
    tree = pids["root"] + pids["nodes"]
    client = _module("bench.dispatch.canopy_driver", canopy.model)
    http = _module("bench.dispatch.canopy_driver", canopy.model, str(canopy.port))
    hops = [_module("bench.dispatch.bare", "1"), _module("bench.dispatch.bare", "2")]
    contenders = [
        Contender(CANOPY, client, api, pids=tree),
        Contender("Canopy over HTTP", http, {"BENCH_KEY": canopy.key}, pids=pids["api"] + tree),
        Contender("bare AMQP", _module("bench.dispatch.bare"), admin, hops),
    ]
    if viewers:
        name = f"{CANOPY}, watched by {viewers}"
        contenders.append(Contender(name, client, api, (), pids["api"] + tree, viewers))
    chosen = [contender for contender in contenders if only.lower() in contender.name.lower()]
    if only.lower() in "celery":
        python = _install(CELERY)
        driver = _module("bench.dispatch.celery_peer", python=python)
        worker = _module("celery", "-A", "bench.dispatch.celery_peer", "worker", python=python)
        chosen.append(Contender("Celery", driver, admin, [worker]))
    return chosen


def _module(name: str, *words: str, python: str | Path = sys.executable) -> list[str]:
    return [str(python), "-P", "-m", name, *words]


def _install(pin: str) -> Path:
    """The Python of an environment below CANOPY_HOME, apart from Canopy's own, that has `pin`."""
    folder = homes.read().path / "bench" / pin
    python = folder / "bin" / "python"
    say(f"preparing {pin}: what is there already stays")
    environment = harness.clean_environment()
    harness.output([sys.executable, "-m", "venv", str(folder)], environment)
    harness.output([str(python), "-m", "pip", "install", "--no-input", pin], environment)
    return python


class RunningContender:
    """A contender whose driver has had answers. `pids`: driver and workers."""

    def __init__(
        self, contender: Contender, workers: list[int], driver: "subprocess.Popen[str]", log: Path
    ) -> None:
        self.contender = contender
        self._driver = driver
        self._log = log
        self.measure(_WARM_UP)
        pids = list(contender.pids)
        for pid in workers:
            children = psutil.Process(pid).children(recursive=True)
            pids += [pid, *(process.pid for process in children)]
        self.pids = {"driver": [driver.pid], "workers": pids}

    def measure(self, block: Block) -> Result:
        """Raises NotStarted if the driver has ended or stays silent."""
        output = self._driver.stdout
        assert output is not None  # noqa: S101 - it is a pipe
        line = ""
        with contextlib.suppress(OSError), selectors.DefaultSelector() as selector:
            print(json.dumps(asdict(block)), file=self._driver.stdin, flush=True)
            selector.register(output, selectors.EVENT_READ)
            if selector.select(block.seconds + _SPARE_SECONDS):
                line = output.readline()
        if not line:
            lines = self._log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise NotStarted(f"{self.contender.name} does not answer: {lines[-1]}")
        return Result(**json.loads(line))


@contextlib.contextmanager
def running(contender: Contender, canopy: Instance) -> Iterator[RunningContender]:
    """Its workers and its driver, for as long as the block runs. Raises NotStarted."""
    log = canopy.home / "logs" / f"bench-{contender.name.replace(' ', '-')}.log"
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
