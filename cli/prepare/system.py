"""Packages of the operating system (Debian, Ubuntu): the broker, what `python -m venv` needs, a browser for tests."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path

from cli.errors import CliError
from cli.prepare.steps import Log, Step

_APT_LISTS = Path("/var/lib/apt/lists")
_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_MARK = "# canopy: no service starts while its package is installed"
_RABBITMQ = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/opt/rabbitmq/sbin/rabbitmq-server")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")

_APT = (
    "apt-get",
    "-o",
    "DPkg::Lock::Timeout=120",
    "-o",
    "APT::Color=0",
    "-y",
    "--no-install-recommends",
)
_APT_ENV = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "a", "LC_ALL": "C.UTF-8"}


def rabbitmq_server() -> Path | None:
    """RabbitMQ's own start script. Debian's wrapper on PATH is no help: it switches to another user."""
    for path in _RABBITMQ:
        if Path(path).exists():
            return Path(path)
    found = shutil.which("rabbitmq-server")
    return Path(found) if found and not Path(found).resolve().name.endswith("wrapper") else None


def browser() -> Path | None:
    """The browser of the end-to-end tests."""
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    return Path(found) if found else None


def can_make_environments() -> bool:
    """Debian splits `ensurepip` from Python; without it `python -m venv` fails half way."""
    importlib.invalidate_caches()  # apt may have brought it a moment ago
    return (
        importlib.util.find_spec("ensurepip") is not None
        and importlib.util.find_spec("venv") is not None
    )


# package -> whether this machine has what it brings
PRESENT: dict[str, Callable[[], bool]] = {
    "rabbitmq-server": lambda: rabbitmq_server() is not None,
    "python3-venv": can_make_environments,
    "chromium": lambda: browser() is not None,
    "libatomic1": lambda: (
        find_library("atomic") is not None
    ),  # Playwright's driver is linked against it
}


def missing(packages: Sequence[str]) -> list[str]:
    """Those of `packages` whose content is not here."""
    return [package for package in packages if not PRESENT[package]()]


def step(packages: Sequence[str]) -> Step:
    """Installs what is missing of `packages`, with the rights this user has."""
    lacking = missing(packages)
    check_rights(lacking)
    return Step(
        "system",
        f"Installing {', '.join(lacking)} (apt)",
        lambda: bool(missing(packages)),
        lambda log: _install(log, missing(packages)),
    )


def check_rights(lacking: Sequence[str]) -> None:
    """Raises CliError with the command to type when something is lacking that this user cannot install."""
    if lacking and _privilege() is None:
        raise CliError(f"Needs {' and '.join(lacking)}; run: {remedy(lacking)}")


def remedy(packages: Sequence[str]) -> str:
    """The command a person with rights types."""
    return f"sudo apt-get update && sudo apt-get install -y {' '.join(packages)}"


def _privilege() -> list[str] | None:
    """The words before a command that needs root, or None when this user cannot become root unasked."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return []
    if (
        shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        return ["sudo", "-n"]
    return None


def _install(log: Log, packages: list[str]) -> None:
    privilege = _privilege()
    if privilege is None:
        raise CliError(f"needs root; run: {remedy(packages)}")
    apt = [*privilege, "env", *(f"{key}={value}" for key, value in _APT_ENV.items()), *_APT]
    with _no_service_starts(log, privilege):
        if not any(_APT_LISTS.glob("*_Packages*")):
            log.run([*apt, "update"], outlives_us=True)
        try:
            log.run([*apt, "install", *packages], outlives_us=True)
        except CliError:
            log.write("The first try failed: the package lists may be old.")
            log.run([*apt, "update"], outlives_us=True)
            log.run([*apt, "install", *packages], outlives_us=True)
    if "rabbitmq-server" in packages and shutil.which("systemctl"):
        # We brought this package for its program. Its service would start a second broker, with guest, at every boot.
        subprocess.run(
            [*privilege, "systemctl", "disable", "rabbitmq-server"],
            capture_output=True,
            check=False,
        )
    if lacking := missing(packages):
        raise CliError(f"apt ended well, yet {', '.join(lacking)} cannot be found")


@contextmanager
def _no_service_starts(log: Log, privilege: list[str]) -> Iterator[None]:
    """Keeps the packaged broker from starting on port 5672: Debian asks policy-rc.d, and 101 means no.

    A policy that somebody else put there is left alone; one that a killed run of ours left is removed.
    """
    if _POLICY.exists() and _POLICY_MARK not in _POLICY.read_text(errors="replace"):
        yield
        return
    script = f"printf '#!/bin/sh\\n{_POLICY_MARK}\\nexit 101\\n' > {_POLICY} && chmod 755 {_POLICY}"
    log.run([*privilege, "sh", "-c", script])
    try:
        yield
    finally:
        log.run([*privilege, "rm", "-f", str(_POLICY)])
