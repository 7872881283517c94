"""`canopy test`: the tiers, two at a time, with their results."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cli.errors import MachineError
from cli.home import FRONTEND, REPOSITORY, VENV
from cli.prepare import frontend, system
from cli.prepare.steps import Step, run_together

TIERS = ("lint", "unit", "frontend", "broker", "faults", "e2e", "clients")
_PYTEST_TIERS = ("unit", "broker", "faults", "e2e", "clients")
_BROKER_TIERS = ("broker", "faults", "e2e", "clients")
_PAGE_TIERS = ("faults", "e2e", "clients")  # those that start instances, which serve the pages
# What is over soon comes first, so that a mistake is seen soon; then the longest tier, so that it
# is not left alone in the end.
_ORDER = ("lint", "frontend", "e2e", "unit", "faults", "clients", "broker")
_LANES = 2  # tiers at a time: while the tests of one wait, those of the other compute
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
_CACHES = REPOSITORY / ".pytest_cache"  # a folder for each tier
_LOGS = REPOSITORY / "var" / "logs"
_ALONE = "mark.alone"  # what a file says that has tests which run alone
_MOST_AGAIN = 10  # failures that are tried again: more are no accident

# pytest's processes per core: enough to keep the cores busy while some wait. Fault tests mostly
# wait: for heartbeats to be missed, for a broker to come back; each needs a third of a core.
_PROCESSES_PER_CORE = {"unit": 1.5, "broker": 1.5, "faults": 3.0, "e2e": 1.5, "clients": 1.5}
_MOST_PROCESSES = 12


@dataclass(frozen=True)
class Result:
    """A tier's exit status, how long it took, and the CPU seconds of its processes.

    A tier that keeps few cores busy waits for something, if no other ran beside it. `unsteady`:
    tests that failed, and passed when they ran again alone.
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


class _Tier:
    """A tier that runs: first what may have company, then what must be alone.

    `log`: takes its output while it has company; without one it is shown as it comes.
    """

    def __init__(self, name: str, log: Path | None = None) -> None:
        self.name = name
        self._log = log
        self._status = 0
        self._seconds = 0.0
        self._cpu_seconds = 0.0
        self._failed: list[str] = []
        self._unsteady: Sequence[str] = ()

    def run_together(self) -> None:
        """The linters, the front end's tests, or pytest in several processes."""
        match self.name:
            case "lint":
                statuses = [self._call([_tool(name), *options]) for name, *options in _LINTERS]
                self._status = max(statuses)
            case "frontend":
                self._status = self._run_frontend()
            case _:
                folder = f"tests/{self.name}"
                options = [folder, "-m", "not alone", *_processes(self.name)]
                self._run_pytest(options, nothing_is_fine=not _exists(self.name) or self._alone())

    def run_alone(self) -> None:
        """The tests that hold limits of time, one by one; then those that failed, again.

        Beside others, a test of processes that die and of times may fail for want of a processor.
        One that passes alone is named in the summary, to be mended.
        """
        self._log = None
        files = self._alone()
        if files:
            print(f"\n== {self.name}: alone", flush=True)
            self._run_pytest([*files, "-m", "alone"], nothing_is_fine=True)
        if self._status != _TESTS_FAILED or not 0 < len(self._failed) <= _MOST_AGAIN:
            return
        print(f"\n== {self.name}: {len(self._failed)} failed; again, alone", flush=True)
        if self._call(self._pytest(self._failed)) == 0:
            self._status, self._unsteady = 0, self._failed

    def result(self) -> Result:
        """What has come of it."""
        return Result(self.name, self._status, self._seconds, self._cpu_seconds, self._unsteady)

    def _alone(self) -> list[str]:
        return _files_with_tests_alone(self.name) if self.name in _PYTEST_TIERS else []

    def _run_pytest(self, arguments: Sequence[str], *, nothing_is_fine: object) -> None:
        status = self._call(self._pytest(arguments))
        if status == _NO_TESTS_COLLECTED and nothing_is_fine:
            return
        self._status = max(self._status, status)
        if status == _TESTS_FAILED:
            self._failed = _failures(self.name)

    def _pytest(self, arguments: Sequence[str]) -> list[str]:
        # two tiers that run at a time would overwrite each other's list of failures
        return [*_pytest(arguments), "-o", f"cache_dir={_CACHES / self.name}"]

    def _run_frontend(self) -> int:
        folder = frontend.node_folder()
        if folder is None:
            raise MachineError("The front end's tests need Node.js; ./canopy up brings it")
        npm, env = frontend.npm_command(folder), frontend.environment(folder)
        status = self._call([*npm, "run", "--silent", "check"], FRONTEND, env)
        return status or self._call([*npm, "test", "--silent"], FRONTEND, env)

    def _call(
        self,
        command: Sequence[str],
        folder: Path = REPOSITORY,
        env: Mapping[str, str] | None = None,
    ) -> int:
        started = time.monotonic()
        status, cpu_seconds = _run(command, folder, env, self._log)
        self._seconds += time.monotonic() - started
        self._cpu_seconds += cpu_seconds
        return status


def run(arguments: Sequence[str]) -> int:
    """Runs tiers, all by default, or pytest with other arguments; 0 when everything passed.

    Raises MachineError when RabbitMQ or a browser is missing.
    """
    if not set(arguments) <= set(TIERS):
        _require(_PYTEST_TIERS)
        return _run(_pytest(arguments))[0]
    tiers = [tier for tier in _ORDER if tier in arguments]
    if not arguments:
        tiers = [tier for tier in _ORDER if _exists(tier)]
    _require(tiers)
    started = time.monotonic()
    _prepare(tiers)
    results = _run_tiers(tiers)
    results.sort(key=lambda result: TIERS.index(result.tier))
    print()
    for result in results:
        print(result)
    if len(results) > 1:
        print(_total(results, time.monotonic() - started))
    return int(any(result.status for result in results))


def _total(results: Sequence[Result], seconds: float) -> str:
    cores = sum(result.cpu_seconds for result in results) / max(seconds, 0.001)
    return f"     all       {seconds:5.0f} s  {cores:4.1f} cores busy"


def _run_tiers(names: Sequence[str]) -> list[Result]:
    """What may have company in lanes, each tier's output whole at its end; then what must not."""
    if len(names) == 1:
        tiers = [_Tier(names[0])]
        print(f"\n== {names[0]}", flush=True)
        tiers[0].run_together()
    else:
        tiers = [_Tier(name, _LOGS / f"test-{name}.log") for name in names]
        _run_in_lanes(tiers)
    for tier in tiers:
        tier.run_alone()
    return [tier.result() for tier in tiers]


def _run_in_lanes(tiers: Sequence[_Tier]) -> None:
    printing = threading.Lock()

    def run_one(tier: _Tier) -> None:
        log = _LOGS / f"test-{tier.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        print(f"... {tier.name} ({log})", flush=True)
        tier.run_together()
        with printing:
            print(f"\n== {tier.name}\n{log.read_text(errors='replace')}", flush=True)

    with ThreadPoolExecutor(_LANES, thread_name_prefix="lane") as lanes:
        try:
            for ended in [lanes.submit(run_one, tier) for tier in tiers]:
                ended.result()
        except BaseException:
            lanes.shutdown(cancel_futures=True)
            raise


def _prepare(tiers: Sequence[str]) -> None:
    """What several tiers would otherwise make at the same time."""
    if "frontend" in tiers:
        title = "Installing the front end's packages (npm)"
        step = Step("npm", title, lambda: True, frontend.install_modules)
        run_together([step], _LOGS)
    if not set(_PAGE_TIERS).isdisjoint(tiers):
        run_together([frontend.step()], _LOGS)


def _failures(tier: str) -> list[str]:
    """Of the last run: ids of tests, or files that could not be read."""
    try:
        known = json.loads((_CACHES / tier / "v" / "cache" / "lastfailed").read_text())
    except FileNotFoundError:
        return []
    return sorted(test for test in known if test.startswith(f"tests/{tier}/"))


def _files_with_tests_alone(tier: str) -> list[str]:
    """To collect all tests of a tier, only to find that none runs alone, takes ten seconds."""
    files = sorted((REPOSITORY / "tests" / tier).glob("**/test_*.py"))
    return [str(file.relative_to(REPOSITORY)) for file in files if _ALONE in file.read_text()]


def _processes(tier: str) -> list[str]:
    """pytest-xdist's options: a file runs in one process, so its tests share what it starts."""
    count = round(_PROCESSES_PER_CORE[tier] * len(os.sched_getaffinity(0)))
    options = ["--numprocesses", str(min(max(count, 2), _MOST_PROCESSES)), "--dist", "loadfile"]
    return [*options, "--no-loadscope-reorder"]  # tests/conftest.py orders the files


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


def _run(
    command: Sequence[str],
    folder: Path = REPOSITORY,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> tuple[int, float]:
    """The exit status of a command, and the CPU seconds of it and its children.

    `env`: variables besides ours. `log`: a file to which its output is appended.
    """
    with ExitStack() as opened:
        output = opened.enter_context(log.open("ab")) if log else None
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**_environment(), **(env or {})},
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)  # it alone tells one child's usage
        except BaseException:
            process.kill()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


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
