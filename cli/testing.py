"""`canopy test`: the tiers, in the order of what fails fastest, each said with its result."""

import os
import subprocess
import time
from collections.abc import Sequence

from cli.errors import CliError
from cli.home import FRONTEND, REPOSITORY, VENV
from cli.prepare import frontend, system
from cli.prepare.steps import Step, run_together

_PYTEST_TIERS = ("unit", "broker", "faults", "e2e", "clients")
TIERS = ("lint", "unit", "frontend", *_PYTEST_TIERS[1:])
# Of the fault tests, those with whole instances or a cluster; the others have a broker and nodes.
_WHOLE = [
    f"tests/faults/test_{theme}.py"
    for theme in (
        "api_dies", "broker_restart_cli", "cancel", "chaos", "cluster", "cluster_session", "launcher_cli",
        "overload", "rolling_restart", "standby_cli",
    )
]  # fmt: skip
# What runs at the same time: the engine's tests import torch, which takes as long as the other half; fault tests wait.
_SIDE_BY_SIDE = {
    "unit": (["tests/unit/engine"], ["tests/unit", "--ignore=tests/unit/engine"]),
    "faults": (["tests/faults", *(f"--ignore={file}" for file in _WHOLE)], _WHOLE),
}
_NEEDS_BROKER = {"broker", "faults", "e2e", "clients"}
_LINTERS = (
    ["ruff", "check"],
    ["ruff", "format", "--check"],
    ["mypy"],
    ["lint-imports", "--no-cache"],
)


def run(arguments: Sequence[str]) -> int:
    """The exit status: 0 when everything asked for passed. Raises CliError when a real broker or browser is missing."""
    words = list(arguments)
    if any(word not in TIERS for word in words):
        _require(set(_PYTEST_TIERS))
        return _run([str(VENV / "bin" / "pytest"), *words])
    tiers = [tier for tier in TIERS if tier in words or (not words and _exists(tier))]
    _require(set(tiers))
    results = {tier: _timed(tier) for tier in tiers}
    print(
        "\n"
        + "\n".join(
            f"{'ok  ' if status == 0 else 'FAIL'} {tier:<9} {seconds:5.0f} s"
            for tier, (status, seconds) in results.items()
        )
    )
    return int(any(status for status, _ in results.values()))


def _timed(tier: str) -> tuple[int, float]:
    print(f"\n== {tier}", flush=True)
    started = time.monotonic()
    return _run_tier(tier), time.monotonic() - started


def _run_tier(tier: str) -> int:
    if tier == "lint":
        return max(_run([str(VENV / "bin" / linter[0]), *linter[1:]]) for linter in _LINTERS)
    if tier == "frontend":
        return _run_frontend()
    if tier == "e2e":
        _build_pages()
    status = max(_run_side_by_side(_SIDE_BY_SIDE.get(tier, ([f"tests/{tier}"],))))
    return 0 if status == 5 and not _exists(tier) else status


def _run_side_by_side(runs: Sequence[list[str]]) -> list[int]:
    """Runs pytest for each list of arguments, all at once; the first shows its output as it comes, the others after."""
    first, *others = [[str(VENV / "bin" / "pytest"), *arguments] for arguments in runs]
    beside = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in others
    ]
    statuses = [_run(first)]
    for process in beside:
        print(process.communicate()[0], flush=True)
        statuses.append(process.returncode)
    return statuses


def _run_frontend() -> int:
    logs = REPOSITORY / "var" / "logs"
    run_together(
        [
            Step(
                "npm",
                "Installing the front end's packages (npm)",
                lambda: True,
                frontend.install_modules,
            )
        ],
        logs,
    )
    folder = frontend.node_folder()
    if folder is None:
        raise CliError("The front end's tests need Node.js; ./canopy up brings it")
    npm, env = frontend.npm_command(folder), frontend.environment(folder)
    return _run([*npm, "run", "--silent", "check"], env) or _run([*npm, "test", "--silent"], env)


def _build_pages() -> None:
    run_together([frontend.step()], REPOSITORY / "var" / "logs")


def _exists(tier: str) -> bool:
    if tier == "lint":
        return True
    if tier == "frontend":
        return (FRONTEND / "package-lock.json").exists()
    return any((REPOSITORY / "tests" / tier).glob("**/test_*.py"))


def _require(tiers: set[str]) -> None:
    """A missing broker or browser fails the run; it never skips tests."""
    if tiers & _NEEDS_BROKER and system.rabbitmq_server() is None:
        raise CliError(f"The tests need a real RabbitMQ; run: {system.remedy(['rabbitmq-server'])}")
    if "e2e" in tiers and system.browser() is None:
        raise CliError(f"The tests need a real browser; run: {system.remedy(['chromium'])}")


def _run(command: list[str], env: dict[str, str] | None = None) -> int:
    return subprocess.run(
        command,
        cwd=FRONTEND if env else REPOSITORY,
        env={**_environment(), **(env or {})},
        check=False,
    ).returncode


def _environment() -> dict[str, str]:
    browser = system.browser()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CANOPY_")}
    return {
        **clean,
        "PYTHONPATH": str(REPOSITORY),
        **({"CANOPY_CHROMIUM": str(browser)} if browser else {}),
    }
