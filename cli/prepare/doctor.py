"""What this machine lacks, a line each, with the remedy. Standard library only: it must work where nothing does."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cli import home
from cli.prepare import frontend, gpus, system, venv

NEEDED_GB = 8  # environment with torch 2-6, model 1, build 0.3
_NEEDED_MEMORY_GB = 4


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `remedy` is empty when all is well; only a `blocking` one makes `doctor` fail."""

    what: str
    found: str
    remedy: str = ""
    blocking: bool = True


def main() -> int:
    """Prints the findings; the exit status is 1 when something is missing that `up` could not do without."""
    failed = 0
    for finding in examine():
        mark = "ok  " if not finding.remedy else ("FAIL" if finding.blocking else "note")
        line = f"{mark} {finding.what}: {finding.found}"
        print(line + (f" -> {finding.remedy}" if finding.remedy else ""))
        failed |= bool(finding.remedy) and finding.blocking
    return int(failed)


def examine() -> Iterator[Finding]:
    """Looks at everything that `up` and `test` rely on; changes nothing."""
    yield Finding("Python", ".".join(map(str, sys.version_info[:3])))
    yield _package("RabbitMQ", "rabbitmq-server", system.rabbitmq_server())
    yield _environment()
    yield _node()
    yield _built()
    yield _package("Browser for the tests", "chromium", system.browser(), blocking=False)
    yield _disk(home.read().path)
    yield _memory()
    yield _gpus(gpus.count())


def _package(what: str, package: str, found: Path | None, *, blocking: bool = True) -> Finding:
    return Finding(
        what, str(found or "not found"), "" if found else system.remedy([package]), blocking
    )


def _environment() -> Finding:
    if not home.VENV_PYTHON.exists():
        remedy = (
            "./canopy up makes it"
            if system.can_make_environments()
            else system.remedy(["python3-venv"])
        )
        return Finding("Python packages", "no .venv", remedy)
    stale = venv.outdated([venv.RUNTIME])
    return Finding(
        "Python packages",
        "out of date" if stale else ".venv",
        "./canopy up installs them" if stale else "",
    )


def _node() -> Finding:
    folder = frontend.node_folder()
    remedy = "" if folder else f"./canopy up installs it ({frontend.NODE_PACKAGE})"
    return Finding("Node.js", str(folder or "none, or older than 20.19"), remedy, blocking=False)


def _built() -> Finding:
    built = frontend.is_built()
    return Finding(
        "Front end", "built" if built else "not built", "" if built else "./canopy up builds it"
    )


def _disk(path: Path) -> Finding:
    place = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(place).free / 1e9
    enough = free >= NEEDED_GB or (home.VENV_PYTHON.exists() and free >= 1)
    return Finding(
        f"Disk at {place}",
        f"{free:.1f} GB free",
        "" if enough else f"free some: {NEEDED_GB} GB are needed",
    )


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    remedy = (
        "" if total >= _NEEDED_MEMORY_GB else "use --engine echo, or --nodes 1 and a small model"
    )
    return Finding("Memory", f"{total:.0f} GB", remedy, blocking=False)


def _gpus(count: int) -> Finding:
    return Finding(
        "GPU",
        str(count or "none"),
        "" if count else "models are computed on the CPU",
        blocking=False,
    )
