"""`canopy test`: the tiers, in the order of what fails fastest, with their results."""

import os
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
_NO_TESTS_COLLECTED = 5  # pytest's exit status

# Per tier, what runs at the same time as the rest of it, cut so that both take about as long: tests
# that import torch, and half of the fault tests, which mostly wait.
_SIDE_BY_SIDE = {
    "unit": ["unit/engine"],
    "broker": ["broker/test_parallel.py"],
    "faults": [
        "faults/test_api_dies.py",
        "faults/test_broker_restart_cli.py",
        "faults/test_cancel.py",
        "faults/test_chaos.py",
        "faults/test_cluster.py",
        "faults/test_cluster_session.py",
        "faults/test_hostile.py",
        "faults/test_overload.py",
        "faults/test_rolling_restart.py",
        "faults/test_standby_cli.py",
    ],
}


@dataclass(frozen=True)
class Result:
    """A tier's exit status and how long it took."""

    tier: str
    status: int
    seconds: float

    def __str__(self) -> str:
        mark = "FAIL" if self.status else "ok  "
        return f"{mark} {self.tier:<9} {self.seconds:5.0f} s"


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
    started = time.monotonic()
    if tier == "lint":
        status = max(_run([_tool(name), *options]) for name, *options in _LINTERS)
    elif tier == "frontend":
        status = _run_frontend()
    else:
        if tier == "e2e":
            _build_pages()
        status = max(_run_side_by_side(_parts(tier)))
        if status == _NO_TESTS_COLLECTED and not _exists(tier):
            status = 0
    return Result(tier, status, time.monotonic() - started)


def _parts(tier: str) -> list[list[str]]:
    """pytest's arguments for each process that runs a part of the tier, at the same time."""
    beside = [f"tests/{path}" for path in _SIDE_BY_SIDE.get(tier, [])]
    rest = [f"tests/{tier}", *(f"--ignore={path}" for path in beside)]
    return [rest, beside] if beside else [rest]


def _run_side_by_side(runs: Sequence[list[str]]) -> list[int]:
    """Runs pytest for each list of arguments at once; shows the first output live."""
    first, *rest = runs
    background = []
    for arguments in rest:
        process = subprocess.Popen(
            _pytest(arguments),
            cwd=REPOSITORY,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        background.append(process)
    statuses = [_run(_pytest(first))]
    for process in background:
        output, _ = process.communicate()
        print(output, flush=True)
        statuses.append(process.returncode)
    return statuses


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
    if "e2e" in tiers and system.browser() is None:
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
    env = {name: value for name, value in os.environ.items() if not name.startswith("CANOPY_")}
    env["PYTHONPATH"] = str(REPOSITORY)
    browser = system.browser()
    if browser:
        env["CANOPY_CHROMIUM"] = str(browser)
    return env
