"""From a public model name to a folder that can be loaded.

A folder appears under its name only when it is complete: it is built beside that and then renamed,
so a process that is killed half-way leaves nothing that looks like a model.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from worker.errors import ModelError
from worker.models import PACKAGED, installed, is_local
from worker.models.progress import Say, bytes_in, gigabytes

STAMP = ".canopy-model.json"  # in a folder that was built here: its source

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class Source(Protocol):
    """Where a model's files come from."""

    @property
    def needs(self) -> int:
        """Bytes of disk, temporary files included. Raises ModelError."""

    @property
    def weights(self) -> int:
        """Bytes of the weights; 0: not known before. Raises ModelError."""

    def stamp(self) -> dict[str, str]:
        """Identifies the version: a folder with the same stamp is up to date."""

    def fill(self, folder: Path, say: Say) -> None:
        """Writes the model's files into the empty or half-filled `folder`. Raises ModelError."""


def prepare(name_or_path: str, at: Path, say: Say, most_weights: int | None = None) -> Path:
    """The folder to load, built under `at`/models if needed. Raises ModelError.

    `most_weights`: bytes; a model that has more is not even downloaded.
    """
    if is_local(name_or_path):
        folder = installed(name_or_path)
        validate(folder)
        return folder
    folder = installed(name_or_path, at)
    source = _source(name_or_path)
    if read_stamp(folder) != source.stamp():
        _check_weights(name_or_path, source, most_weights)
        _make_room(folder.parent, source.needs - bytes_in(_partial(folder)), say)
        with _lock(folder, say):
            if read_stamp(folder) != source.stamp():  # another process may have built it
                _build(source, folder, say)
    return folder


def validate(folder: Path) -> None:
    """Raises ModelError unless `folder` holds a model with weights and a tokenizer."""
    if not folder.is_dir():
        raise ModelError(f"no such folder: {folder}")
    try:
        json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no readable config.json: {error}") from error
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} has no *.safetensors (other weight formats can run code and are not loaded)"
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model)")


def read_stamp(folder: Path) -> dict[str, str] | None:
    """The stamp of the folder's source, or None."""
    try:
        stamp: dict[str, str] = json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return stamp


def _source(name: str) -> Source:
    if name in PACKAGED:
        from worker.models.packaged import MODELS

        return MODELS[name]
    from worker.models.hub import HubModel

    return HubModel(name)


def _check_weights(name: str, source: Source, most: int | None) -> None:
    if most is not None and source.weights > most:
        raise ModelError(
            f"{name} does not fit into the memory that is free: its weights are "
            f"{gigabytes(source.weights)}, and up to {gigabytes(most)} would fit"
        )


def _partial(folder: Path) -> Path:
    """Where the folder is built, and what a broken run leaves, to be resumed."""
    return folder.parent / f".{folder.name}.partial"


def _make_room(models: Path, needs: int, say: Say) -> None:
    """Raises ModelError if there is not so much room; `needs`: bytes that are yet to come."""
    needs = max(needs, 0)
    try:
        models.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(models).free
    except OSError as error:
        raise ModelError(f"cannot write to {models}: {error.strerror}") from error
    if free < needs:
        raise ModelError(
            f"{models} has {gigabytes(free)} free and the model needs {gigabytes(needs)}"
        )
    say(f"disk: {gigabytes(free)} free in {models}, {gigabytes(needs)} needed")


@contextmanager
def _lock(folder: Path, say: Say) -> Iterator[None]:
    """Lets one process at a time build the folder; the kernel frees a dead process's lock."""
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares {folder.name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fill(source: Source, partial: Path, say: Say) -> None:
    try:
        source.fill(partial, say)
    except ModelError:
        if not any(partial.iterdir()):  # keep a broken download, to resume it
            partial.rmdir()
        raise


def _build(source: Source, folder: Path, say: Say) -> None:
    """Fills a hidden sibling folder and renames it. The source may reuse what a broken run left."""
    partial = _partial(folder)
    old = folder.parent / f".{folder.name}.old"
    try:
        shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        _fill(source, partial, say)
        validate(partial)
        (partial / STAMP).write_text(json.dumps(source.stamp()))
        if folder.exists():
            folder.replace(old)
        partial.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"cannot write the model to {folder.parent}: {error}") from error
