"""Paths: the repository, and CANOPY_HOME, an instance's state folder. Standard library only."""

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
FRONTEND = REPOSITORY / "frontend"
PRIVATE_UMASK = 0o077  # of everything that an instance writes: conversations, keys, passwords
PREPARE_LOCK = REPOSITORY / "var" / ".prepare.lock"  # guards .venv and frontend/dist

_GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def module_command(name: str, *arguments: str) -> list[str]:
    """How to run one of our programs; -P keeps the caller's folder out of Python's search path."""
    return [sys.executable, "-P", "-m", name, *arguments]


def module_environment() -> dict[str, str]:
    """The environment in which `module_command` finds our programs."""
    path = [str(REPOSITORY)]
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if folder and folder not in path:
            path.append(folder)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def become_module(name: str, *arguments: str, **env: str) -> NoReturn:
    """Replaces this process by one of our programs; signals and the exit status are then its own.

    `env`: variables on top of the present ones.
    """
    sys.stdout.flush()
    command = module_command(name, *arguments)
    os.execve(sys.executable, command, {**module_environment(), **env})  # noqa: S606 - no shell


class Home(NamedTuple):
    """The state folder. Two instances with different folders share nothing but the program."""

    path: Path

    @property
    def broker(self) -> Path:
        """The private broker's data, configuration and credentials."""
        return self.path / "broker"

    @property
    def logs(self) -> Path:
        """One file per process and per preparation step."""
        return self.path / "logs"

    @property
    def launcher_log(self) -> Path:
        """The output of a detached launcher."""
        return self.logs / "up.log"

    @property
    def run(self) -> Path:
        """Files that are valid only while an instance runs."""
        return self.path / "run"

    @property
    def instance_file(self) -> Path:
        """Written by `up` when ready, removed at its end; holds passwords (0600)."""
        return self.run / "instance.json"

    @property
    def lock_file(self) -> Path:
        """Locked from the start of `up` to its end (cli/lock.py)."""
        return self.run / "lock"

    @property
    def processes_file(self) -> Path:
        """All processes, as they start: the next `up` ends what a killed launcher left."""
        return self.run / "processes.json"

    @property
    def nodes(self) -> Path:
        """The sockets of the nodes that run on this machine (cli/local_nodes.py)."""
        return self.run / "nodes"

    @property
    def version_file(self) -> Path:
        """Which Canopy has used the folder last (cli/state.py)."""
        return self.path / "version.json"

    @property
    def models_lock(self) -> Path:
        """Held while a model is prepared here."""
        return self.path / ".models.lock"

    @property
    def models(self) -> Path:
        """Prepared models."""
        return self.path / "models"

    def node_variables(self, name: str) -> dict[str, str]:
        """For a node's process that nothing watches: where it logs, and answers commands here."""
        return {
            "CANOPY_HOME": str(self.path),
            "CANOPY_LOG_FILE": str(self.logs / f"{name}.log"),
            "CANOPY_NODE_SOCKETS": str(self.nodes),
        }

    def of_agent(self, host: str) -> "Home":
        """The state folder of an agent that runs beside an instance, or without one."""
        return Home(self.path / "agents" / host)

    def make(self) -> None:
        """Creates the folders for their owner alone. Raises OSError.

        Files that an older version left readable for others become private too.
        """
        for folder in (self.path, self.broker, self.logs, self.run):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(self)


def make_private(home: Home) -> None:
    """Removes the rights of group and others in the state folder. Raises OSError.

    Files of other users and targets of links stay as they are. Of a shared folder such as /tmp,
    only our own sub-folders change.
    """
    _restrict(home.path)
    for entry in home.path.iterdir():
        if entry.is_file() and not _is_shared(home.path.lstat()):
            _restrict(entry)
    for top in (home.broker, home.logs, home.run, home.models):
        if top.is_symlink() or not top.exists():
            continue
        _restrict(top)
        for folder, folders, files in os.walk(top):
            for name in (*folders, *files):
                _restrict(Path(folder, name))


def _restrict(path: Path) -> None:
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode) or _is_shared(status):
            return
        if status.st_mode & _GROUP_AND_OTHERS:
            path.chmod(stat.S_IMODE(status.st_mode) & ~_GROUP_AND_OTHERS)
    except FileNotFoundError:  # a running process has removed it
        return


def _is_shared(status: os.stat_result) -> bool:
    """Whether it belongs to another user, or to everybody like /tmp."""
    return bool(status.st_mode & stat.S_ISVTX) or status.st_uid != os.geteuid()


def read(environ: Mapping[str, str] = os.environ) -> Home:
    """The state folder of this command: CANOPY_HOME, or `var` in the repository."""
    return Home(Path(environ.get("CANOPY_HOME") or REPOSITORY / "var").expanduser().resolve())
