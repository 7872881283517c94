"""A backup: a compressed tar file with a manifest, the database, uploaded files and private state.

    manifest.json       what it is, and how much to expect
    database.sqlite3    every row, whatever database the instance has
    files/...           contents of uploads (api/files/disk.py)
    state/...           secret key, passwords, tokens and certificates: files of CANOPY_HOME

Whatever a file claims to be, reading it writes these names alone, and no more than it announces.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import mkstemp
from typing import IO, Any, NamedTuple, cast

import msgspec

from api.data.errors import DataError
from api.data.progress import Progress

FORMAT = 1
DATABASE = "database.sqlite3"
FILES, STATE, SECRET = "files", "state", "secret.key"
STATE_BYTES = 1_000_000  # of one file below `state/`
_MANIFEST = "manifest.json"
_MANIFEST_BYTES = 1_000_000
_MOST_MEMBERS = 5_000_000
_COMPRESSION = 3  # most of a backup is text, or compressed already
_CHUNK = 1 << 20
_NAMES = re.compile(
    rf"{re.escape(DATABASE)}"
    r"|files/(partial/)?[0-9a-f]{24}(\.[0-9]{1,9})?"
    r"|state/(broker/)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
)


def is_member(name: str) -> bool:
    """Whether a file of that name may be in a backup, beside the manifest."""
    return _NAMES.fullmatch(name) is not None


class Manifest(msgspec.Struct, frozen=True):
    """What is in a backup. `rows`: by table; `bytes`: of all files together, before compression.

    `version` and `state`: those of topology/version.py, when it was made.
    """

    format: int
    version: str
    state: int
    created: str
    database: str
    migrations: list[tuple[str, str]]
    rows: dict[str, int]
    files: int
    bytes: int


class Member(NamedTuple):
    """A file to be added under `name`, as long as it was when it was listed."""

    name: str
    path: Path
    size: int

    @classmethod
    def of(cls, name: str, path: Path) -> "Member":
        """As it is now."""
        try:
            return cls(name, path, path.stat().st_size)
        except FileNotFoundError:  # deleted since its folder was read
            return cls(name, path, 0)


@contextmanager
def created(file: Path, *, force: bool) -> Iterator[tarfile.TarFile]:
    """A new archive, at its place once the block has ended well. Raises DataError, OSError."""
    if file.exists() and not force:
        raise DataError(f"{file} exists: choose another name, or say --force")
    if file.exists() and not file.is_file():  # as root, --force would replace even a device
        raise DataError(f"{file} is no plain file: choose another name")
    if not file.parent.is_dir():
        raise DataError(f"there is no folder {file.parent}: make it first, or choose another")
    # a name and a file of its own: another backup may be under way, another user's file there
    handle, name = mkstemp(prefix=f".{file.name}.", suffix=".part", dir=file.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            with tarfile.open(
                fileobj=stream, mode="w:gz", compresslevel=_COMPRESSION, format=tarfile.PAX_FORMAT
            ) as archive:
                yield archive
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def write(archive: tarfile.TarFile, member: Member, progress: Progress) -> bool:
    """Adds a file; False if it is gone. One that has grown is cut off where it was."""
    try:
        stream = member.path.open("rb")
    except FileNotFoundError:
        return False
    with stream:
        size = min(member.size, os.fstat(stream.fileno()).st_size)
        archive.addfile(_header(member.name, size), stream)
    progress.add(size)
    return True


def write_manifest(archive: tarfile.TarFile, manifest: Manifest) -> None:
    """The first member."""
    content = msgspec.json.encode(manifest)
    archive.addfile(_header(_MANIFEST, len(content)), BytesIO(content))


def _header(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


@contextmanager
def reading(file: Path) -> Iterator[tuple[Manifest, tarfile.TarFile]]:
    """An archive and its manifest. Raises DataError if it is none, or a newer version's."""
    try:
        with tarfile.open(file, mode="r|gz") as archive:
            yield _read_manifest(archive), archive
    except (tarfile.TarError, EOFError, OSError, msgspec.MsgspecError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{file} is no backup of Canopy, or is damaged: {error}") from error


def _read_manifest(archive: tarfile.TarFile) -> Manifest:
    first = archive.next()
    stream = archive.extractfile(first) if first is not None and first.isreg() else None
    if first is None or stream is None or first.name != _MANIFEST or first.size > _MANIFEST_BYTES:
        raise DataError("this file is no backup of Canopy")
    content = stream.read()
    header = msgspec.json.decode(content, type=dict[str, object])
    if header.get("format") != FORMAT:
        raise DataError(
            f"this backup was made by Canopy {str(header.get('version'))[:50]}, in a form that "
            "this version does not know: use that version to restore it"
        )
    return msgspec.json.decode(content, type=Manifest)


def extract(archive: tarfile.TarFile, manifest: Manifest, folder: Path) -> int:
    """Writes all members below `folder`; how many are files of users. Raises DataError, OSError."""
    progress = Progress("reading the backup", manifest.bytes, "bytes")
    left, members, files = manifest.bytes, 0, 0
    while (member := archive.next()) is not None:
        cast(Any, archive).members.clear()  # it would remember all of them
        members += 1
        if not member.isreg() or not is_member(member.name) or members > _MOST_MEMBERS:
            raise DataError(f"the backup has a member that does not belong there: {member.name!r}")
        left -= member.size
        if left < 0:
            raise DataError("the backup has more in it than it says: it is damaged")
        stream = archive.extractfile(member)
        if stream is not None:
            _write_private(stream, folder / member.name, progress)
            files += member.name.startswith(f"{FILES}/")
    return files


def _write_private(stream: IO[bytes], file: Path, progress: Progress) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as target:
        while chunk := stream.read(_CHUNK):
            target.write(chunk)
            progress.add(len(chunk))
