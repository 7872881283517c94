"""What only a benchmark needs (peers, plotting): in virtual environments of its own, never among Canopy's packages."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from bench.instance import NotStarted
from cli import home as homes
from cli.errors import CliError
from cli.prepare.steps import Log, Step, exclusive, run_together

_STAMP = ".pins"  # hash of what was installed to the end; written last, so a half-made environment is made again


def environment(name: str, *requirements: str) -> Path:
    """The Python of the environment `name` below CANOPY_HOME, which holds `requirements`.

    `requirements`: one or more pins such as "celery==5.5.3". The environment is made, with visible progress, when it is
    missing or the pins or our Python have changed; two benchmarks at once wait for each other. Raises NotStarted, in
    one line, if pip fails.
    """
    home = homes.read()
    folder = home.path / "bench" / name
    pins = fingerprint(requirements)
    step = Step(
        f"bench-{name}",
        f"Installing what the benchmark compares with ({', '.join(requirements)})",
        lambda: not _is_made(folder, pins),
        lambda log: _make(log, folder, requirements, pins),
    )
    try:
        with exclusive(home.path / "bench" / f".{name}.lock"):
            run_together([step], home.logs)
    except (CliError, OSError) as error:
        raise NotStarted(str(error)) from error
    return _python(folder)


def fingerprint(requirements: tuple[str, ...]) -> str:
    """What an environment depends on: the pins, in any order, and the Python that makes it."""
    return hashlib.sha256(
        "\n".join([sys.version, sys.base_prefix, *sorted(requirements)]).encode()
    ).hexdigest()


def _make(log: Log, folder: Path, requirements: tuple[str, ...], pins: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    log.run([sys.executable, "-m", "venv", folder])
    quiet = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")
    log.run([_python(folder), "-m", "pip", "install", *quiet, *requirements])
    (folder / _STAMP).write_text(pins)


def _is_made(folder: Path, pins: str) -> bool:
    try:
        if (folder / _STAMP).read_text() != pins:
            return False
        return (
            subprocess.run([_python(folder), "-c", ""], capture_output=True, check=False).returncode
            == 0
        )
    except OSError:
        return False


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"
