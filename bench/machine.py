"""What a result must say about where and with what it was made."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import psutil

from cli.home import REPOSITORY

_PACKAGES = ("pika", "django", "uvicorn", "httptools", "msgspec", "transformers", "torch")


def machine() -> dict[str, object]:
    """The computer, and how busy it was when asked."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "load": [round(each, 2) for each in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """The program's commit, Python, and the packages that matter here."""
    found = {"canopy": _commit(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        "unknown",
    )


def _commit() -> str:
    """The commit, with a `+` when files of the program differ from it; "unknown" outside a clone."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(REPOSITORY), *words], check=True, capture_output=True, text=True
    ).stdout.strip()
