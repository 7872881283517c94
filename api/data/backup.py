"""`backup`: everything that a new machine needs, from an instance that may be running."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.utils import timezone

from api.data import archive, databases, tables
from api.data.archive import DATABASE, FILES, SECRET, STATE, STATE_BYTES, Manifest, Member
from api.data.progress import Progress, say
from api.files.disk import ContentStore
from api.storage import schema
from topology.version import STATE as STATE_VERSION
from topology.version import VERSION

_COPY = "backup"  # Django's name of the copy

# Files that belong to what runs, or that `up` writes anew, and a database left by migrate-db.
_NOT_KEPT = (
    "version.json",
    ".sqlite3",
    ".lock",
    ".log",
    ".new",
    ".part",
    ".pid",
    "-wal",
    "-shm",
    "-journal",
    ".gz",
    ".tgz",
)


def write(file: Path, *, force: bool) -> Manifest:
    """Makes the backup. Raises DataError, UnfitDatabase, DatabaseError, OSError."""
    schema.check_known(schema.applied())
    home = settings.ENV.home
    with (
        archive.created(file, force=force) as target,
        TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder,
    ):
        copy = Path(folder) / DATABASE
        copy_database(copy)
        members = [Member.of(DATABASE, copy), *_state(home, file), *_contents(home)]
        manifest = _manifest(copy, members)
        archive.write_manifest(target, manifest)
        progress = Progress("writing the backup", manifest.bytes, "bytes")
        for member in members:
            archive.write(target, member, progress)
    return manifest


def copy_database(copy: Path) -> None:
    """All rows as they are at one moment, in a new SQLite file."""
    own = databases.own_file()
    if own is not None:
        databases.copy_file(own, copy)
        return
    copy.touch(mode=0o600)
    with databases.opened(_COPY, databases.file_config(copy)) as alias:
        schema.migrate(lambda text: None, alias)
        with _one_moment(), transaction.atomic(using=alias):
            tables.copy_all(DEFAULT_DB_ALIAS, alias, "reading the database")


@contextmanager
def _one_moment() -> Iterator[None]:
    """What the block reads from PostgreSQL belongs together, whoever writes meanwhile."""
    with transaction.atomic(), connections[DEFAULT_DB_ALIAS].cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield


def _manifest(copy: Path, members: list[Member]) -> Manifest:
    with databases.opened(_COPY, databases.file_config(copy)) as alias:
        rows = tables.existing_counts(alias)
        migrations = sorted(schema.applied(alias))
    return Manifest(
        format=archive.FORMAT,
        version=VERSION,
        state=STATE_VERSION,
        created=timezone.now().isoformat(timespec="seconds"),
        database=databases.vendor(),
        migrations=migrations,
        rows=rows,
        files=sum(member.name.startswith(f"{FILES}/") for member in members),
        bytes=sum(member.size for member in members),
    )


def _contents(home: Path) -> list[Member]:
    """The contents of uploads, and the results of batches under way."""
    store = ContentStore(home)
    found = []
    for folder, prefix in ((store.directory, FILES), (store.partial, f"{FILES}/partial")):
        found += [(f"{prefix}/{path.name}", path) for path in _files(folder)]
    return [Member.of(name, path) for name, path in found if archive.is_member(name)]


def _state(home: Path, backup: Path) -> list[Member]:
    """Small private files of the instance and of its broker: keys, passwords, certificates."""
    secret = settings.ENV.secret_file
    found = [Member.of(f"{STATE}/{SECRET}", secret)]
    others = (databases.own_file(), backup, secret, home / SECRET)
    for folder, prefix in ((home, STATE), (home / "broker", f"{STATE}/broker")):
        for path in _files(folder):
            member = Member.of(f"{prefix}/{path.name}", path)
            if (
                path in others
                or path.name.endswith(_NOT_KEPT)
                or not archive.is_member(member.name)
            ):
                continue
            if member.size <= STATE_BYTES:
                found.append(member)
            else:
                say(f"not in the backup, as it is larger than {STATE_BYTES:,} bytes: {path}")
    return found


def _files(folder: Path) -> list[Path]:
    """The plain files in a folder, by name; none if there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
