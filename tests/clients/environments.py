"""An environment for each client, made from its locked packages: their dependencies conflict.

`environments/NAME.txt` locks a Python client, `node/package-lock.json` all that run on Node.js.
Environments are in `var/clients/` and stay until a lock file changes.
"""

import hashlib
import json
import re
import sys
import sysconfig
from pathlib import Path

from cli.errors import ProcessError
from cli.home import REPOSITORY
from cli.prepare import frontend
from cli.prepare.steps import Log, exclusive

FOLDER = REPOSITORY / "var" / "clients"
LOCKS = Path(__file__).parent / "environments"
NODE = Path(__file__).parent / "node"
# These need a torch or transformers; Canopy's own spare gigabytes.
_BORROWERS = {"guidellm", "lm-eval", "open-webui"}
_UV = Path(sys.executable).with_name("uv")
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def python(name: str) -> Path:
    """The Python that has the packages of `environments/NAME.txt`. Raises CliError."""
    lock = LOCKS / f"{name}.txt"
    folder = FOLDER / name
    interpreter = folder / "bin" / "python"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with exclusive(FOLDER / f"{name}.lock"):
        if _is_outdated(folder, lock):
            _install(name, folder, lock)
            if name in _BORROWERS:
                packages = folder / "lib" / f"python{_VERSION}" / "site-packages"
                (packages / "canopy.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
            _record(folder, lock)
    return interpreter


def node() -> Path:
    """A Node.js whose scripts in `node/` find their packages. Raises CliError."""
    lock = NODE / "package-lock.json"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with exclusive(FOLDER / "node.lock"):
        log = Log(FOLDER / "node.log")
        folder = frontend.require_node(log)
        if _is_outdated(NODE / "node_modules", lock):
            command = [*frontend.npm_command(folder), "ci"]
            log.run(command, cwd=NODE, env=frontend.environment(folder))
            _record(NODE / "node_modules", lock)
        log.close()
    return folder / "node"


def python_version(name: str, package: str) -> str:
    """The version of a package in `environments/NAME.txt`."""
    lines = (LOCKS / f"{name}.txt").read_text()
    found = re.search(rf"^{re.escape(package)}(?:\[.*\])?==([^ ;\n]+)", lines, re.MULTILINE)
    if found is None:
        raise LookupError(f"environments/{name}.txt locks no {package}")
    return found[1]


def node_version(package: str) -> str:
    """The version of a package in `node/package-lock.json`."""
    lock = json.loads((NODE / "package-lock.json").read_text())
    return str(lock["packages"][f"node_modules/{package}"]["version"])


def _install(name: str, folder: Path, lock: Path) -> None:
    """Makes the environment: by uv, which links the files of its cache, or else by pip.

    pip knows of a mirror that uv was not told of: they read different settings.
    """
    python = str(folder / "bin" / "python")
    packages = ["--no-deps", "-r", str(lock)]
    try:
        _run(name, [str(_UV), "venv", "--clear", "--python", sys.executable, str(folder)])
        _run(name, [str(_UV), "pip", "install", "--python", python, *packages])
    except ProcessError:
        _run(name, [sys.executable, "-m", "venv", "--clear", str(folder)])
        _run(name, [python, "-m", "pip", "install", "--quiet", *packages])


def _run(name: str, command: list[str]) -> None:
    log = Log(FOLDER / f"{name}.log")
    try:
        log.run(command)
    finally:
        log.close()


def _is_outdated(folder: Path, lock: Path) -> bool:
    stamp = folder / ".canopy-stamp"
    return not stamp.exists() or stamp.read_text() != _fingerprint(lock)


def _record(folder: Path, lock: Path) -> None:
    (folder / ".canopy-stamp").write_text(_fingerprint(lock))


def _fingerprint(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
