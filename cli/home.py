"""Where things are: the repository and CANOPY_HOME, the state folder of one instance. Standard library only."""

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
FRONTEND = REPOSITORY / "frontend"
PRIVATE_UMASK = 0o077  # of everything that an instance writes: conversations, keys, passwords
PREPARE_LOCK = (
    REPOSITORY / "var" / ".prepare.lock"
)  # held by whoever changes .venv or frontend/dist

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


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
    def launcher_log(self) -> Path:
        """What a detached launcher says."""
        return self.logs / "up.log"

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
        """Locked from the first moment of `up` to its last (cli/lock.py)."""
        return self.run / "lock"

    @property
    def processes_file(self) -> Path:
        """Every process started, as soon as it is: the next `up` ends what a killed launcher left."""
        return self.run / "processes.json"

    @property
    def models_lock(self) -> Path:
        """Held by whoever prepares a model here."""
        return self.path / ".models.lock"

    @property
    def models(self) -> Path:
        """Prepared models."""
        return self.path / "models"

    def make(self) -> None:
        """Creates the folders, for their owner alone, and mends what an older version left
        readable for others. Raises OSError.
        """
        for folder in (self.path, self.broker, self.logs, self.run):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(self)


def make_private(home: Home) -> None:
    """Takes all rights of group and others from what is in the state folder. Raises OSError.

    What belongs to somebody else, or is reached through a link, stays as it is; so does a shared
    folder such as /tmp, but for our own folders in it.
    """
    _take_others_rights(home.path)
    for entry in home.path.iterdir():
        if entry.is_file() and not _is_shared(home.path.lstat()):
            _take_others_rights(entry)
    for ours in (home.broker, home.logs, home.run, home.models):
        if ours.is_symlink() or not ours.exists():
            continue
        _take_others_rights(ours)
        for folder, folders, files in os.walk(ours):
            for name in (*folders, *files):
                _take_others_rights(Path(folder, name))


def _take_others_rights(path: Path) -> None:
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode) or _is_shared(found):
            return
        if found.st_mode & _OTHERS:
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
    except FileNotFoundError:  # a running process has removed it
        return


def _is_shared(found: os.stat_result) -> bool:
    """Whether it is somebody else's, or everybody's like /tmp."""
    return bool(found.st_mode & stat.S_ISVTX) or found.st_uid != os.geteuid()


def read(environ: Mapping[str, str] = os.environ) -> Home:
    """The state folder of this command: CANOPY_HOME, or `var` in the repository."""
    return Home(Path(environ.get("CANOPY_HOME") or REPOSITORY / "var").expanduser().resolve())
