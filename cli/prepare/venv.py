"""The virtual environment in .venv: made once, updated when the requirements change."""

import subprocess
import sys

from cli.errors import MachineError
from cli.home import REPOSITORY, VENV, VENV_PYTHON
from cli.prepare import stamps
from cli.prepare.steps import Log, Step


def step(files: list[str]) -> Step:
    """Installs the requirement files that are out of date."""

    def needed() -> bool:
        return bool(stamps.outdated(files))

    def work(log: Log) -> None:
        _install(log, stamps.outdated(files))

    return Step("environment", "Installing the Python packages (pip)", needed, work)


def pip_install(log: Log, *arguments: str) -> None:
    """Runs pip in the environment, with the user's pip configuration (index, proxy, ...)."""
    # --no-compile: byte-compiling torch up front takes a minute; imports compile what they need.
    quiet = ("--disable-pip-version-check", "--no-input", "--no-compile", "--progress-bar", "off")
    log.run([VENV_PYTHON, "-m", "pip", "install", *quiet, *arguments])


def _install(log: Log, files: list[str]) -> None:
    if not _works():
        log.run([_base_python(), "-m", "venv", "--clear", VENV])
        if stamps.RUNTIME not in files:
            files = [stamps.RUNTIME] + files
    for name in files:
        stamps.forget(name)  # so an interrupted installation is repeated
        pip_install(log, "-r", str(REPOSITORY / name))
        stamps.record(name)


def _works() -> bool:
    """Whether the environment's Python starts and has pip; an unfinished one does not."""
    if not VENV_PYTHON.exists():
        return False
    probe = subprocess.run([VENV_PYTHON, "-c", "import pip"], capture_output=True, check=False)
    return probe.returncode == 0


def _base_python() -> str:
    """The Python outside any environment, as ours may be about to be replaced."""
    python: str = getattr(sys, "_base_executable", None) or sys.executable
    if not python:
        raise MachineError("cannot tell which python3 runs this program")
    return python
