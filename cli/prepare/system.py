"""Packages of Debian and Ubuntu: the broker, `python -m venv`, a browser for the tests."""

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes.util import find_library
from functools import partial
from pathlib import Path

from cli import environment
from cli.errors import CliError, MachineError, ProcessError
from cli.prepare.steps import Log, Step

_APT_LISTS = Path("/var/lib/apt/lists")
_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_MARK = "# canopy: no service starts while its package is installed"
_RABBITMQ = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/opt/rabbitmq/sbin/rabbitmq-server")
_POSTGRESQL = Path("/usr/lib/postgresql")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")

_APT = ("apt-get", "--no-install-recommends", "-y")
_APT_SETTINGS = ("-o", "DPkg::Lock::Timeout=120", "-o", "APT::Color=0")
_APT_ENV = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "a", "LC_ALL": "C.UTF-8"}


def rabbitmq_server() -> Path | None:
    """RabbitMQ's own start script, not Debian's wrapper on PATH, which switches to another user.

    CANOPY_RABBITMQ names another one. Raises MachineError if it is none.
    """
    chosen = environment.read().rabbitmq
    if chosen:
        if not os.access(chosen, os.X_OK):
            raise MachineError(f"CANOPY_RABBITMQ: {chosen} is no program; name rabbitmq-server")
        return Path(chosen)
    for path in _RABBITMQ:
        if Path(path).exists():
            return Path(path)
    on_path = shutil.which("rabbitmq-server")
    if on_path is None or Path(on_path).resolve().name.endswith("wrapper"):
        return None
    return Path(on_path)


def browser() -> Path | None:
    """The browser of the end-to-end tests."""
    for name in _BROWSERS:
        on_path = shutil.which(name)
        if on_path:
            return Path(on_path)
    return None


def can_make_environments() -> bool:
    """Whether `python -m venv` works: Debian packages its `ensurepip` separately."""
    importlib.invalidate_caches()  # apt may just have installed it
    return (
        importlib.util.find_spec("ensurepip") is not None
        and importlib.util.find_spec("venv") is not None
    )


def has_libatomic() -> bool:
    """Whether there is the library against which Playwright's driver is linked."""
    return find_library("atomic") is not None


def postgresql_programs() -> Path | None:
    """The folder of the newest PostgreSQL's own programs, which Debian keeps out of PATH."""
    folders = [path.parent for path in _POSTGRESQL.glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    if not folders and on_path:
        return Path(on_path).parent
    return max(folders, key=lambda folder: int(folder.parent.name), default=None)


def nginx() -> str | None:
    """The proxy of docs/proxy, which Debian keeps out of other users' PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def c_compiler() -> str | None:
    """Compiles the clients of docs/clients."""
    return shutil.which("cc") or shutil.which("gcc")


def c_headers() -> bool:
    """Whether the compiler finds the C library's headers."""
    return Path("/usr/include/stdio.h").exists()


def openldap_server() -> Path | None:
    """The directory server, which Debian keeps out of users' PATH."""
    return _on_path("slapd", "/usr/sbin")


def ldap_headers() -> bool:
    """Whether python-ldap can be compiled, as far as OpenLDAP's headers are concerned."""
    return Path("/usr/include/ldap.h").exists()


def sasl_headers() -> bool:
    """The same for SASL's."""
    return Path("/usr/include/sasl/sasl.h").exists()


def python_headers() -> bool:
    """Whether extensions of this Python can be compiled."""
    return Path(sysconfig.get_paths()["include"], "Python.h").exists()


def _on_path(name: str, folder: str) -> Path | None:
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{folder}")
    return Path(found) if found else None


# package -> what it brings, or whether that is there
PROBES: dict[str, Callable[[], object]] = {
    "rabbitmq-server": rabbitmq_server,
    "python3-venv": can_make_environments,
    "chromium": browser,
    "libatomic1": has_libatomic,
    "postgresql": postgresql_programs,
    "gcc": c_compiler,
    "libc6-dev": c_headers,
    "systemd": partial(shutil.which, "systemd-analyze"),
    "openssl": partial(shutil.which, "openssl"),
    "nginx-light": nginx,
    "caddy": partial(shutil.which, "caddy"),
    "default-jdk-headless": partial(shutil.which, "javac"),
    "slapd": openldap_server,
    "libldap2-dev": ldap_headers,
    "libsasl2-dev": sasl_headers,
    "python3-dev": python_headers,
}


def missing(packages: Sequence[str]) -> list[str]:
    """The packages whose content this machine lacks."""
    return [package for package in packages if not PROBES[package]()]


def step(packages: Sequence[str]) -> Step:
    """Installs the missing packages, with the rights of this user. Raises MachineError."""
    lacking = missing(packages)
    check_rights(lacking)

    def needed() -> bool:
        return bool(missing(packages))

    def work(log: Log) -> None:
        _install(log, missing(packages))

    return Step("system", f"Installing {', '.join(lacking)} (apt)", needed, work)


def check_rights(lacking: Sequence[str]) -> None:
    """Raises MachineError, with the command to type, for packages this user cannot install."""
    if lacking and _privilege() is None:
        raise MachineError(f"Needs {' and '.join(lacking)}; run: {remedy(lacking)}")


def remedy(packages: Sequence[str]) -> str:
    """The command that installs the packages, for a user with sudo."""
    return f"sudo apt-get update && sudo apt-get install -y {' '.join(packages)}"


def _privilege() -> list[str] | None:
    """The words that make a command run as root; None where that would need a password."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    probe = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        return None
    return ["sudo", "-n"]


def _install(log: Log, packages: list[str]) -> None:
    privilege = _privilege()
    if privilege is None:
        raise MachineError(f"needs root; run: {remedy(packages)}")
    with _no_service_starts(log, privilege):
        if not any(_APT_LISTS.glob("*_Packages*")):
            _apt(log, privilege, "update")
        try:
            _apt(log, privilege, "install", *packages)
        except CliError:
            log.write("apt-get install failed: the package lists may be old.")
            _apt(log, privilege, "update")
            _apt(log, privilege, "install", *packages)
    if "rabbitmq-server" in packages and shutil.which("systemctl"):
        # Only its program is needed; its service would start a second broker at every boot.
        command = privilege + ["systemctl", "disable", "rabbitmq-server"]
        subprocess.run(command, capture_output=True, check=False)
    lacking = missing(packages)
    if lacking:
        raise ProcessError(f"apt succeeded, but {', '.join(lacking)} cannot be found")


def _apt(log: Log, privilege: list[str], *words: str) -> None:
    """Runs apt-get to its end, even if we are killed."""
    command = privilege + ["env"]
    for name, value in _APT_ENV.items():
        command.append(f"{name}={value}")
    command.extend(_APT + _APT_SETTINGS + words)
    log.run(command, survives_us=True)


@contextmanager
def _no_service_starts(log: Log, privilege: list[str]) -> Iterator[None]:
    """Keeps the packaged broker from starting on port 5672: policy-rc.d answers 101, for no.

    A policy of the machine's owner stays; one that a killed run of ours left is replaced.
    """
    if _POLICY.exists() and _POLICY_MARK not in _POLICY.read_text(errors="replace"):
        yield
        return
    script = f"printf '#!/bin/sh\\n{_POLICY_MARK}\\nexit 101\\n' > {_POLICY} && chmod 755 {_POLICY}"
    log.run(privilege + ["sh", "-c", script])
    try:
        yield
    finally:
        log.run(privilege + ["rm", "-f", str(_POLICY)])
