"""A contender's processes: started, asked, ended whatever happens."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import psutil

from bench.dispatch.contenders import Contender
from bench.dispatch.loop import Block, Question
from bench.instance import NotStarted
from cli.home import REPOSITORY

READY_SECONDS = 60.0
END_SECONDS = 5.0
_ANSWER_SECONDS = 120.0  # more than any block takes
_SHIM = str(REPOSITORY / "cli" / "child.py")


class Running:
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
        ready = self._answer(READY_SECONDS)
        self.pids = {"driver": [driver.pid], "workers": [*_families(workers), *ready["pids"]]}

    def measure(self, question: Question) -> Block:
        """One block. Raises NotStarted if the driver ended or says nothing."""
        assert self._driver.stdin is not None  # noqa: S101 - PIPE was asked for
        try:
            self._driver.stdin.write(json.dumps(asdict(question)) + "\n")
            self._driver.stdin.flush()
        except OSError:
            raise self._failed() from None
        return Block(**self._answer(question.seconds + _ANSWER_SECONDS))

    def _answer(self, seconds: float) -> dict[str, Any]:
        out = self._driver.stdout
        assert out is not None  # noqa: S101 - PIPE was asked for
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            line = out.readline() if selector.select(seconds) else ""
        if not line:
            raise self._failed()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self) -> NotStarted:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return NotStarted(
            f"{self.contender.name} does not answer: {lines[-1] if lines else 'it said nothing'}"
        )


@contextlib.contextmanager
def running(contender: Contender, logs: Path) -> Iterator[Running]:
    """Its workers and its driver, for as long as the block runs. Raises NotStarted."""
    log = logs / f"bench-{contender.name.replace(' ', '-')}.log"
    with contextlib.ExitStack() as stack, log.open("w") as file:
        environment = _environment(contender.environment)
        workers = [
            stack.enter_context(_process(words, environment, file))
            for words in contender.workers.values()
        ]
        driver = stack.enter_context(_process(contender.driver, environment, file, driver=True))
        yield Running(contender, [worker.pid for worker in workers], driver, log)


@contextlib.contextmanager
def _process(
    words: Sequence[str], environment: Mapping[str, str], log: IO[str], *, driver: bool = False
) -> Iterator["subprocess.Popen[str]"]:
    """A process that leads a group of its own and ends when we are killed."""
    shim = [sys.executable, "-S", "-E", _SHIM, str(int(signal.SIGKILL)), str(os.getpid())]
    process = subprocess.Popen(
        [*shim, *words],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.PIPE if driver else subprocess.DEVNULL,
        stdout=subprocess.PIPE if driver else log,
        stderr=log,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.stdin is not None:
            with contextlib.suppress(OSError):  # that is how a driver is told to end
                process.stdin.close()
        else:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # what is left of its group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Nothing of an instance that this shell may point to."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CANOPY_", "PYTHONPATH"))
    }
    return {**clean, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", **extra}


def _families(pids: Sequence[int]) -> list[int]:
    """The processes and all that they have started."""
    return [
        each
        for pid in pids
        for each in (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True)))
    ]
