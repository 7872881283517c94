"""Packages that only a benchmark needs, in virtual environments apart from Canopy's own."""

import shutil
import subprocess
import sys
from pathlib import Path

from bench.errors import NotStarted
from cli import home as homes
from cli.errors import CliError
from cli.prepare.steps import Log, Step, exclusive, run_together

_STAMP = ".pins"  # what was installed; written last, so that a half-made environment is made again


def python_of(name: str) -> Path:
    """The Python of the environment `name` below CANOPY_HOME."""
    return homes.read().path / "bench" / name / "bin" / "python"


def environment(name: str, *requirements: str) -> None:
    """Makes that environment with pins such as "celery==5.5.3", unless it is there already.

    Two benchmarks at once wait for each other. Raises NotStarted with one line if pip fails.
    """
    home = homes.read()
    python = python_of(name)
    folder = home.path / "bench" / name
    pins = "\n".join([sys.version, sys.base_prefix, *sorted(requirements)])

    def is_missing() -> bool:
        try:
            if (folder / _STAMP).read_text() != pins:
                return True
            return (
                subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode != 0
            )
        except OSError:
            return True

    def make(log: Log) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        log.run([sys.executable, "-m", "venv", folder])
        quiet = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")
        log.run([python, "-m", "pip", "install", *quiet, *requirements])
        (folder / _STAMP).write_text(pins)

    title = f"Installing what the benchmark compares with ({', '.join(requirements)})"
    try:
        with exclusive(home.path / "bench" / f".{name}.lock"):
            run_together([Step(f"bench-{name}", title, is_missing, make)], home.logs)
    except (CliError, OSError) as error:
        raise NotStarted(str(error)) from error
