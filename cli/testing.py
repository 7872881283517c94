"""`canopy test`: the tiers, in the order of what fails fastest, with their results."""

import json
import os
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cli.errors import MachineError
from cli.home import FRONTEND, REPOSITORY, VENV
from cli.prepare import frontend, system
from cli.prepare.steps import Step, run_together

TIERS = ("lint", "unit", "frontend", "broker", "faults", "e2e", "clients")
_PYTEST_TIERS = ("unit", "broker", "faults", "e2e", "clients")
_BROKER_TIERS = ("broker", "faults", "e2e", "clients")
_LINTERS = (
    ["ruff", "check"],
    ["ruff", "format", "--check"],
    ["mypy"],
    ["lint-imports", "--no-cache"],
)
# which RabbitMQ the tests start; see tests/rabbitmq4
KEPT = ("CANOPY_RABBITMQ", "CANOPY_RABBITMQ_ROOT")
_BYTECODE = REPOSITORY / "var" / "bytecode"
_TESTS_FAILED, _NO_TESTS_COLLECTED = 1, 5  # pytest's exit statuses
_LAST_FAILED = REPOSITORY / ".pytest_cache" / "v" / "cache" / "lastfailed"
_MOST_AGAIN = 10  # failures that are tried again: more are no accident

# pytest's processes per core: enough to keep the cores busy while some wait. Fault tests mostly
# wait: for heartbeats to be missed, for a broker to come back; each needs a third of a core.
_PROCESSES_PER_CORE = {"unit": 1.5, "broker": 1.5, "faults": 3.0, "e2e": 1.5, "clients": 1.5}
_MOST_PROCESSES = 12


@dataclass(frozen=True)
class Result:
    """A tier's exit status, how long it took, and the CPU seconds of its processes.

    A tier that keeps fewer cores busy than there are waits for something. `unsteady`: tests that
    failed, and passed when they ran again alone.
    """

    tier: str
    status: int
    seconds: float
    cpu_seconds: float
    unsteady: Sequence[str] = ()

    def __str__(self) -> str:
        mark = "FAIL" if self.status else "ok  "
        cores = self.cpu_seconds / max(self.seconds, 0.001)
        line = f"{mark} {self.tier:<9} {self.seconds:5.0f} s  {cores:4.1f} cores busy"
        return "\n".join([line, *(f"     unsteady: {test}" for test in self.unsteady)])


def run(arguments: Sequence[str]) -> int:
    """Runs tiers, all by default, or pytest with other arguments; 0 when everything passed.

    Raises MachineError when RabbitMQ or a browser is missing.
    """
    if not set(arguments) <= set(TIERS):
        _require(_PYTEST_TIERS)
        return _run(_pytest(arguments))
    tiers = [tier for tier in TIERS if tier in arguments]
    if not arguments:
        tiers = [tier for tier in TIERS if _exists(tier)]
    _require(tiers)
    results = [_run_tier(tier) for tier in tiers]
    print()
    for result in results:
        print(result)
    return int(any(result.status for result in results))


def _run_tier(tier: str) -> Result:
    print(f"\n== {tier}", flush=True)
    started, cpu_before = time.monotonic(), _cpu_seconds()
    unsteady: Sequence[str] = ()
    if tier == "lint":
        status = max(_run([_tool(name), *options]) for name, *options in _LINTERS)
    elif tier == "frontend":
        status = _run_frontend()
    else:
        if tier == "e2e":
            _build_pages()
        status = _run_tests(tier)
        if status == _TESTS_FAILED:
            status, unsteady = _run_failures_again(tier)
    seconds = time.monotonic() - started
    return Result(tier, status, seconds, _cpu_seconds() - cpu_before, unsteady)


def _run_tests(tier: str) -> int:
    """Most tests in several processes, then one by one those that hold limits of time."""
    folder = f"tests/{tier}"
    together = _run(_pytest([folder, "-m", "not alone", *_processes(tier)]))
    if together not in (0, _TESTS_FAILED, _NO_TESTS_COLLECTED):
        return together
    alone = _run(_pytest([folder, "-m", "alone"]))
    if together == alone == _NO_TESTS_COLLECTED:
        return _NO_TESTS_COLLECTED if _exists(tier) else 0
    return max(0 if status == _NO_TESTS_COLLECTED else status for status in (together, alone))


def _run_failures_again(tier: str) -> tuple[int, Sequence[str]]:
    """The status of the failed tests when nothing runs beside them, and which they were.

    Beside others, a test of processes that die and of times may fail for want of a processor. One
    that passes alone is named in the summary, to be mended.
    """
    failed = _failures(tier)
    if not failed or len(failed) > _MOST_AGAIN:
        return _TESTS_FAILED, ()
    print(f"\n== {tier}: {len(failed)} failed; again, alone", flush=True)
    status = _run(_pytest(failed))
    return status, () if status else failed


def _failures(tier: str) -> list[str]:
    """Of the last run: ids of tests, or files that could not be read."""
    try:
        known = json.loads(_LAST_FAILED.read_text())
    except FileNotFoundError:
        return []
    return sorted(test for test in known if test.startswith(f"tests/{tier}/"))


def _cpu_seconds() -> float:
    """CPU seconds of all descendants that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _processes(tier: str) -> list[str]:
    """pytest-xdist's options: a file runs in one process, so its tests share what it starts."""
    count = round(_PROCESSES_PER_CORE[tier] * len(os.sched_getaffinity(0)))
    options = ["--numprocesses", str(min(max(count, 2), _MOST_PROCESSES)), "--dist", "loadfile"]
    return [*options, "--no-loadscope-reorder"]  # tests/conftest.py orders the files


def _run_frontend() -> int:
    title = "Installing the front end's packages (npm)"
    step = Step("npm", title, lambda: True, frontend.install_modules)
    run_together([step], REPOSITORY / "var" / "logs")
    folder = frontend.node_folder()
    if folder is None:
        raise MachineError("The front end's tests need Node.js; ./canopy up brings it")
    npm, env = frontend.npm_command(folder), frontend.environment(folder)
    status = _run([*npm, "run", "--silent", "check"], env)
    return status or _run([*npm, "test", "--silent"], env)


def _build_pages() -> None:
    run_together([frontend.step()], REPOSITORY / "var" / "logs")


def _exists(tier: str) -> bool:
    if tier == "lint":
        return True
    if tier == "frontend":
        return (FRONTEND / "package-lock.json").exists()
    return any((REPOSITORY / "tests" / tier).glob("**/test_*.py"))


def _require(tiers: Sequence[str]) -> None:
    """A missing broker or browser fails the run; it never skips tests. Raises MachineError."""
    needs_broker = not set(tiers).isdisjoint(_BROKER_TIERS)
    if needs_broker and system.rabbitmq_server() is None:
        remedy = system.remedy(["rabbitmq-server"])
        raise MachineError(f"The tests need a real RabbitMQ; run: {remedy}")
    if not {"e2e", "clients"}.isdisjoint(tiers) and system.browser() is None:
        remedy = system.remedy(["chromium"])
        raise MachineError(f"The tests need a real browser; run: {remedy}")


def _tool(name: str) -> str:
    return str(VENV / "bin" / name)


def _pytest(arguments: Sequence[str]) -> list[str]:
    return [_tool("pytest"), *arguments]


def _run(command: list[str], frontend_env: dict[str, str] | None = None) -> int:
    """The exit status of a command, run in the repository, or in frontend/ with its variables."""
    env = _environment()
    folder = REPOSITORY
    if frontend_env:
        env.update(frontend_env)
        folder = FRONTEND
    return subprocess.run(command, cwd=folder, env=env, check=False).returncode


def _environment() -> dict[str, str]:
    """Ours without the variables of an instance, which tests must not touch."""
    env = {}
    for name, value in os.environ.items():
        if not name.startswith("CANOPY_") or name in KEPT:
            env[name] = value
    env["PYTHONPATH"] = str(REPOSITORY)
    if env.pop("PYTHONDONTWRITEBYTECODE", ""):
        # The tests start some hundred Python processes. If each compiled all modules again, that
        # would be half of their work; so what must not lie beside the sources is kept here.
        env["PYTHONPYCACHEPREFIX"] = str(_BYTECODE)
    # Several processes share the cores: a second thread in each would wait for the first, busily.
    env.setdefault("OMP_NUM_THREADS", "1")
    browser = system.browser()
    if browser:
        env["CANOPY_CHROMIUM"] = str(browser)
    return env
