"""Models: found, checked and, for the packaged one, converted once. The work itself is `worker.models`."""

import hashlib
import os
from pathlib import Path

from cli.errors import CliError
from cli.home import PRIVATE_UMASK, REPOSITORY, VENV_PYTHON, Home
from cli.prepare.steps import Log, Step

_NAME_BYTES = 200  # it becomes a routing key and part of file names, which end at 255


class Model:
    """A model that `up` or `node` was asked for. `folder` is known once the step has run."""

    def __init__(self, asked: str) -> None:
        if not asked or len(os.fsencode(Path(asked).name)) > _NAME_BYTES:
            raise CliError(
                f"--model must name a model in 1 to {_NAME_BYTES} bytes, not {asked[:40]!r}.",
                code=2,
            )
        local = is_local(asked)
        self.asked = str(Path(asked).expanduser().resolve()) if local else asked
        self.name = Path(self.asked).name if local else asked
        self.folder: Path | None = None

    def step(self, home: Home) -> Step:
        """Prepares the model; instant when it was prepared before."""
        return Step(
            f"model-{_slug(self.name)}",
            f"Preparing the model {self.name}",
            lambda: True,
            lambda log: self._work(log, home),
        )

    def _work(self, log: Log, home: Home) -> None:
        env = {"CANOPY_HOME": str(home.path), "PYTHONUNBUFFERED": "1"}
        command: list[str | Path] = [VENV_PYTHON, "-m", "worker.models", "prepare", self.asked]
        lines = log.run(command, cwd=REPOSITORY, env=env, umask=PRIVATE_UMASK)
        folder = Path(lines[-1].strip()) if lines else Path()
        if not lines or not folder.is_dir():
            raise CliError(f"no folder came out of preparing {self.asked}")
        self.folder = folder


def _slug(name: str) -> str:
    """A file name for the model's log; names that differ in punctuation alone get different ones."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)[
        :80
    ]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def is_local(asked: str) -> bool:
    """Whether a folder of this machine is meant, rather than a known name or a Hugging Face id."""
    return (
        asked.startswith(("/", "./", "../", "~")) or asked.endswith(os.sep) or Path(asked).is_dir()
    )
