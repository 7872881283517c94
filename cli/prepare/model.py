"""Prepares models: downloads, checks and converts them, in a process of `worker.models`."""

import hashlib
import os
import re
from pathlib import Path

from cli.errors import ProcessError, UsageError
from cli.home import PRIVATE_UMASK, REPOSITORY, VENV_PYTHON, Home
from cli.prepare.steps import Log, Step

_NAME_BYTES = 200  # it becomes a routing key and part of file names, both limited to 255


class Model:
    """What --model says: a folder, a packaged model or a Hugging Face id.

    `argument`: the same for another working folder; `name`: public; `folder`: set by the step.
    """

    def __init__(self, argument: str) -> None:
        if not argument or len(os.fsencode(Path(argument).name)) > _NAME_BYTES:
            raise UsageError(
                f"--model must name a model in 1 to {_NAME_BYTES} bytes, not {argument[:40]!r}."
            )
        self.argument = argument
        self.name = argument
        self.folder: Path | None = None
        if is_local(argument):
            path = Path(argument).expanduser().resolve()
            self.argument = str(path)
            self.name = path.name

    def step(self, home: Home) -> Step:
        """Prepares the model; instant if that was done before."""
        return Step(
            f"model-{_slug(self.name)}",
            f"Preparing the model {self.name}",
            lambda: True,
            lambda log: self._work(log, home),
        )

    def _work(self, log: Log, home: Home) -> None:
        env = {"CANOPY_HOME": str(home.path), "PYTHONUNBUFFERED": "1"}
        command: list[str | Path] = [VENV_PYTHON, "-m", "worker.models", "prepare", self.argument]
        lines = log.run(command, cwd=REPOSITORY, env=env, umask=PRIVATE_UMASK)
        folder = Path(lines[-1].strip()) if lines else Path()
        if not lines or not folder.is_dir():
            raise ProcessError(f"preparing {self.argument} made no folder")
        self.folder = folder


def _slug(name: str) -> str:
    """A file name for the model's log, with a hash where the model's name is not one."""
    plain = re.sub(r"[^A-Za-z0-9]", "-", name)[:80]
    if plain == name:
        return name
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def is_local(argument: str) -> bool:
    """Whether a folder of this machine is meant, not a packaged model or a Hugging Face id."""
    if argument.startswith(("/", "./", "../", "~")) or argument.endswith(os.sep):
        return True
    return Path(argument).is_dir()
