"""`doctor`: what this machine lacks, a line each, with the remedy. Standard library only."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cli import home
from cli.prepare import frontend, gpus, stamps, system

NEEDED_GB = 8  # environment with torch 2 to 6, model 1, build 0.3
_NEEDED_GB_INSTALLED = 1
_NEEDED_MEMORY_GB = 4


@dataclass(frozen=True)
class Finding:
    """The state of one thing. `remedy`: "" if it is fine; `blocking`: without it `up` fails."""

    subject: str
    state: str
    remedy: str = ""
    blocking: bool = True

    def __str__(self) -> str:
        if not self.remedy:
            return f"ok   {self.subject}: {self.state}"
        mark = "note"
        if self.blocking:
            mark = "FAIL"
        return f"{mark} {self.subject}: {self.state} -> {self.remedy}"


def main() -> int:
    """Prints the findings; the exit status is 1 if `up` would fail."""
    status = 0
    for finding in examine():
        print(finding)
        if finding.remedy and finding.blocking:
            status = 1
    return status


def examine() -> Iterator[Finding]:
    """Examines everything that `up` and `test` rely on; changes nothing."""
    yield Finding("Python", ".".join(map(str, sys.version_info[:3])))
    yield _package("RabbitMQ", "rabbitmq-server", system.rabbitmq_server())
    yield _environment()
    yield _node()
    yield _pages()
    yield _package("Browser for the tests", "chromium", system.browser(), blocking=False)
    yield _disk(home.read().path)
    yield _memory()
    yield _gpus(gpus.count())


def _package(subject: str, package: str, path: Path | None, *, blocking: bool = True) -> Finding:
    if path:
        return Finding(subject, str(path))
    return Finding(subject, "not found", system.remedy([package]), blocking)


def _environment() -> Finding:
    subject = "Python packages"
    if not home.VENV_PYTHON.exists():
        if system.can_make_environments():
            return Finding(subject, "no .venv", "./canopy up makes it")
        return Finding(subject, "no .venv", system.remedy(["python3-venv"]))
    if stamps.outdated([stamps.RUNTIME]):
        return Finding(subject, "out of date", "./canopy up installs them")
    return Finding(subject, ".venv")


def _node() -> Finding:
    folder = frontend.node_folder()
    if folder:
        return Finding("Node.js", str(folder))
    remedy = f"./canopy up installs it ({frontend.NODE_PACKAGE})"
    return Finding("Node.js", "none, or older than 20.19", remedy, blocking=False)


def _pages() -> Finding:
    if frontend.is_built():
        return Finding("Front end", "built")
    return Finding("Front end", "not built", "./canopy up builds it")


def _disk(path: Path) -> Finding:
    folder = path
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    needed = NEEDED_GB
    if home.VENV_PYTHON.exists():
        needed = _NEEDED_GB_INSTALLED
    remedy = ""
    if free < needed:
        remedy = f"free some: {needed} GB are needed"
    return Finding(f"Disk at {folder}", f"{free:.1f} GB free", remedy)


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    remedy = ""
    if total < _NEEDED_MEMORY_GB:
        remedy = "use --engine echo, or --nodes 1 and a small model"
    return Finding("Memory", f"{total:.0f} GB", remedy, blocking=False)


def _gpus(count: int) -> Finding:
    if count:
        return Finding("GPU", str(count))
    return Finding("GPU", "none", "models are computed on the CPU", blocking=False)
