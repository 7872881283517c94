"""The virtual environment in .venv: made once, updated when the requirements change."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from cli.errors import MachineError
from cli.home import REPOSITORY, VENV, VENV_PYTHON
from cli.prepare.steps import Log, Step

STAMP = VENV / ".canopy-stamp"
RUNTIME = "requirements.txt"
DEVELOPMENT = "requirements-dev.txt"


def step(files: list[str]) -> Step:
    """Installs the requirement files that are out of date."""
    return Step(
        "environment",
        "Installing the Python packages (pip)",
        lambda: bool(outdated(files)),
        lambda log: _install(log, outdated(files)),
    )


def outdated(files: list[str]) -> list[str]:
    """The files that changed, or whose installation did not finish, in this environment."""
    stamps = _read_stamps()
    return [name for name in files if stamps.get(name) != fingerprint(REPOSITORY / name)]


def fingerprint(file: Path) -> str:
    """A hash of what an installation depends on: the file and the environment's Python."""
    config = VENV / "pyvenv.cfg"
    version = config.read_bytes() if config.exists() else b""
    return hashlib.sha256(file.read_bytes() + b"\0" + version).hexdigest()


def pip_install(log: Log, *arguments: str) -> None:
    """Runs pip in the environment, with the user's pip configuration (index, proxy, ...)."""
    # --no-compile: byte-compiling torch up front takes a minute; imports compile what they need.
    quiet = ("--disable-pip-version-check", "--no-input", "--no-compile", "--progress-bar", "off")
    log.run([VENV_PYTHON, "-m", "pip", "install", *quiet, *arguments])


def _install(log: Log, files: list[str]) -> None:
    if not _works():
        log.run([_base_python(), "-m", "venv", "--clear", VENV])
        if RUNTIME not in files:
            files = [RUNTIME, *files]
    for name in files:
        _write_stamp(name, None)  # so an interrupted installation is repeated
        pip_install(log, "-r", str(REPOSITORY / name))
        _write_stamp(name, fingerprint(REPOSITORY / name))


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


def _read_stamps() -> dict[str, str]:
    if not VENV_PYTHON.exists():
        return {}
    try:
        stamps = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _write_stamp(name: str, value: str | None) -> None:
    stamps = _read_stamps()
    stamps.pop(name, None)
    if value is not None:
        stamps[name] = value
    fresh = STAMP.with_suffix(".new")
    fresh.write_text(json.dumps(stamps))
    os.replace(fresh, STAMP)
