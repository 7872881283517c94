"""Where things are: the repository and CANOPY_HOME, the state folder of one instance. Standard library only."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
FRONTEND = REPOSITORY / "frontend"
PREPARE_LOCK = REPOSITORY / "var" / ".prepare.lock"  # held by whoever changes .venv or frontend/dist


def module_command(name: str, *arguments: str) -> list[str]:
    """How to run one of our programs from anywhere: -P keeps the caller's folder out of Python's search path."""
    return [sys.executable, "-P", "-m", name, *arguments]


def module_environment() -> dict[str, str]:
    """The environment in which `module_command` finds our programs."""
    path = [str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, path)))}


@dataclass(frozen=True)
class Home:
    """The state folder. Two instances with different folders share nothing but the program."""

    path: Path

    @property
    def broker(self) -> Path:
        """The private broker's data, configuration and credentials."""
        return self.path / "broker"

    @property
    def logs(self) -> Path:
        """One file a process, one a preparation step."""
        return self.path / "logs"

    @property
    def run(self) -> Path:
        """What is true only while an instance runs."""
        return self.path / "run"

    @property
    def instance_file(self) -> Path:
        """Written by `up` when ready, removed at the end; holds passwords (0600)."""
        return self.run / "instance.json"

    @property
    def lock_file(self) -> Path:
        """Locked while an instance runs. The kernel drops the lock when its holder dies, so it is never stale."""
        return self.run / "lock"

    @property
    def processes_file(self) -> Path:
        """Every process started, as soon as it is: the next `up` ends what a killed launcher left."""
        return self.run / "processes.json"

    @property
    def models_lock(self) -> Path:
        """Held by whoever prepares a model here."""
        return self.path / ".models.lock"

    def make(self) -> None:
        """Creates the folders. Raises OSError."""
        for folder in (self.path, self.broker, self.logs, self.run):
            folder.mkdir(parents=True, exist_ok=True)
        for private in (self.broker, self.run):
            private.chmod(0o700)


def read(environ: Mapping[str, str] = os.environ) -> Home:
    """The state folder of this command: CANOPY_HOME, or `var` in the repository."""
    return Home(Path(environ.get("CANOPY_HOME") or REPOSITORY / "var").expanduser().resolve())
