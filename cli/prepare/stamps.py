"""Which requirement files .venv has, as recorded after each installation. Standard library only."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from cli.home import REPOSITORY, VENV, VENV_PYTHON

STAMP = VENV / ".canopy-stamp"
RUNTIME = "requirements.txt"
LDAP = "requirements-ldap.txt"
DEVELOPMENT = "requirements-dev.txt"


def outdated(files: Sequence[str]) -> list[str]:
    """The files that changed, or whose installation did not finish, in this environment."""
    stamps = _read()
    return [name for name in files if stamps.get(name) != fingerprint(REPOSITORY / name)]


def fingerprint(file: Path) -> str:
    """A hash of what an installation depends on: the file and the environment's Python."""
    config = VENV / "pyvenv.cfg"
    version = b""
    if config.exists():
        version = config.read_bytes()
    return hashlib.sha256(file.read_bytes() + b"\0" + version).hexdigest()


def record(name: str) -> None:
    """That file is installed to its end."""
    _write(_read() | {name: fingerprint(REPOSITORY / name)})


def forget(name: str) -> None:
    """The installation of that file begins, and may be interrupted."""
    stamps = _read()
    stamps.pop(name, None)
    _write(stamps)


def _write(stamps: dict[str, str]) -> None:
    fresh = STAMP.with_suffix(".new")
    fresh.write_text(json.dumps(stamps))
    os.replace(fresh, STAMP)


def _read() -> dict[str, str]:
    if not VENV_PYTHON.exists():
        return {}
    try:
        stamps = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(stamps, dict):
        return {}
    return stamps
