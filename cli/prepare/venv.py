"""The virtual environment beside the program: made once, brought up to date when the requirements change."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from cli.errors import CliError
from cli.home import REPOSITORY, VENV, VENV_PYTHON
from cli.prepare.steps import Log, Step

STAMP = VENV / ".canopy-stamp"
RUNTIME = "requirements.txt"
DEVELOPMENT = "requirements-dev.txt"


def step(files: list[str]) -> Step:
    """Installs the requirement files that the environment does not hold yet."""
    return Step(
        "environment",
        "Installing the Python packages (pip)",
        lambda: bool(outdated(files)),
        lambda log: _install(log, outdated(files)),
    )


def outdated(files: list[str]) -> list[str]:
    """Those of `files` that were not installed to the end in their present form, by this environment's Python."""
    stamps = _read_stamps()
    return [name for name in files if stamps.get(name) != fingerprint(REPOSITORY / name)]


def fingerprint(file: Path) -> str:
    """What an installation depends on: the file's lines and the environment's Python."""
    version = (VENV / "pyvenv.cfg").read_bytes() if (VENV / "pyvenv.cfg").exists() else b""
    return hashlib.sha256(file.read_bytes() + b"\0" + version).hexdigest()


def pip_install(log: Log, *arguments: str) -> None:
    """pip in the environment; a user's own pip configuration (index, certificates, proxy) counts."""
    # Byte code is compiled when first imported: compiling all of torch up front costs a minute on two cores.
    quiet = ("--disable-pip-version-check", "--no-input", "--no-compile", "--progress-bar", "off")
    log.run([VENV_PYTHON, "-m", "pip", "install", *quiet, *arguments])


def _install(log: Log, files: list[str]) -> None:
    if not _works():
        log.run([_base_python(), "-m", "venv", "--clear", VENV])
        files = [RUNTIME, *(name for name in files if name != RUNTIME)]
    for name in files:
        _write_stamp(name, None)  # an interrupted installation is not believed
        pip_install(log, "-r", str(REPOSITORY / name))
        _write_stamp(name, fingerprint(REPOSITORY / name))


def _works() -> bool:
    """Whether the environment has a Python that starts and has pip; a half-made one has not."""
    if not VENV_PYTHON.exists():
        return False
    probe = subprocess.run([VENV_PYTHON, "-c", "import pip"], capture_output=True, check=False)
    return probe.returncode == 0


def _base_python() -> str:
    """The Python outside any environment: the one we run on may be about to be replaced."""
    base: str | None = getattr(sys, "_base_executable", None)
    if not (base or sys.executable):
        raise CliError("cannot tell which python3 runs this program")
    return base or sys.executable


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
