"""`restore`: a backup becomes the instance's state, which is put aside; nothing runs meanwhile.

All that can fail happens in a folder beside: reading, checking, migrating. Then the files change
places. MARK stands as long as they do, so that `up` refuses what a power cut has left half done.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from django.apps import apps
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.utils import timezone

from api.data import archive, databases, tables
from api.data.archive import DATABASE, FILES, SECRET, STATE, Manifest
from api.data.errors import DataError
from api.data.progress import say
from api.files.disk import ContentStore
from api.storage import schema
from topology.version import STATE as STATE_VERSION
from topology.version import VERSION

MARK, VERSION_FILE = "restoring", "version.json"  # cli/state.py reads them
_RESTORED = "restored"  # Django's name of the database in the backup
_SIDECARS = ("", "-wal", "-shm", "-journal")
_SPARE_BYTES = 100_000_000  # that are left on the disk


def read(file: Path, *, force: bool) -> Manifest:
    """Restores the backup. Raises DataError, UnfitDatabase, DatabaseError, OSError.

    Call it with the instance's lock held.
    """
    home = settings.ENV.home
    with archive.reading(file) as (manifest, content):
        _check(manifest, home)
        databases.check_unused()
        if not force:
            _check_empty(home)
        folder = Path(mkdtemp(prefix=".restore-", dir=home))
        try:
            files = archive.extract(content, manifest, folder)
            _prepare(folder / DATABASE, manifest)
            aside = _take_places(folder, home)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if files < manifest.files:
        say(f"{manifest.files - files} files had been deleted while the backup was made")
    if _is_worthless(aside, home):
        shutil.rmtree(aside)
    else:
        say(f"what was here before is in {aside}: delete it when all is well")
    return manifest


def _is_worthless(aside: Path, home: Path) -> bool:
    """Whether nothing was here but a secret key, which reading the settings makes."""
    found = [path.relative_to(aside) for path in aside.rglob("*") if not path.is_dir()]
    is_ours = settings.ENV.secret_file == home / SECRET
    return not found or (is_ours and found == [Path(STATE, SECRET)])


def _check(manifest: Manifest, home: Path) -> None:
    """Whether this code can use it, and the disk has room."""
    if manifest.state > STATE_VERSION:
        raise DataError(
            f"this backup was made by Canopy {manifest.version[:50]}, which is newer than this one "
            f"({VERSION}): use that version to restore it"
        )
    schema.check_known([(app, name) for app, name in manifest.migrations], "the backup")
    free = shutil.disk_usage(home).free
    if manifest.bytes + _SPARE_BYTES > free:
        raise DataError(
            f"the backup needs {manifest.bytes / 1e6:,.0f} MB, and the disk of {home} has "
            f"{free / 1e6:,.0f} MB free"
        )


def _check_empty(home: Path) -> None:
    """Raises DataError if something would be replaced."""
    own = databases.own_file()
    if own is None:
        with connections[DEFAULT_DB_ALIAS].cursor() as cursor:
            present = bool(connections[DEFAULT_DB_ALIAS].introspection.table_names(cursor))
        where = "the database"
    else:
        present, where = own.exists(), str(own)
    if not present:
        present, where = bool(list(ContentStore(home).directory.glob("*[0-9a-f]"))), str(home)
    if present:
        raise DataError(
            f"{where} has data already, which the backup would replace: make a backup of it "
            "(./canopy backup FILE), then say --force"
        )


def _prepare(database: Path, manifest: Manifest) -> None:
    """Checks the extracted database and brings it to this code's schema."""
    if not database.exists():
        raise DataError("the backup has no database in it: it is damaged")
    databases.check_file(database)
    with databases.opened(_RESTORED, databases.file_config(database)) as alias:
        rows = tables.existing_counts(alias)
        if any(manifest.rows.get(name) != number for name, number in rows.items()):
            raise DataError("the database in the backup has other rows than the backup says")
        schema.migrate(say, alias)


def _take_places(folder: Path, home: Path) -> Path:
    """Puts the new state in the place of the present one; returns the folder that has that now."""
    aside = home / f"replaced-{timezone.now():%Y%m%d-%H%M%S}"
    mark = home / MARK
    with _database(folder / DATABASE, aside):
        aside.mkdir(mode=0o700)
        mark.touch(mode=0o600)
        store = ContentStore(home)
        _replace(folder / FILES, store.directory, aside / FILES)
        store.prepare()
        _replace(None, home / VERSION_FILE, aside / STATE / VERSION_FILE)  # `up` writes it anew
        for file in sorted((folder / STATE).rglob("*")):
            if file.is_file():
                name = file.relative_to(folder / STATE)
                place = _place(home, name)
                if place != databases.own_file():  # of an instance that had left SQLite
                    _replace(file, place, aside / STATE / name)
    mark.unlink()
    return aside


def _place(home: Path, name: Path) -> Path:
    return settings.ENV.secret_file if str(name) == SECRET else home / name


@contextmanager
def _database(fresh: Path, aside: Path) -> Iterator[None]:
    """Replaces the database at the block's end; PostgreSQL's is checked before the block begins."""
    own = databases.own_file()
    if own is not None:
        yield
        for suffix in _SIDECARS:
            _replace(None, own.with_name(own.name + suffix), aside / (own.name + suffix))
        _replace(fresh, own, aside / own.name)
        return
    with transaction.atomic(), databases.opened(_RESTORED, databases.file_config(fresh)) as alias:
        _drop_tables()
        schema.migrate(lambda text: None)
        tables.copy_all(alias, DEFAULT_DB_ALIAS, "writing the database")
        connections[DEFAULT_DB_ALIAS].check_constraints()  # now, not when the files have moved
        yield


def _drop_tables() -> None:
    connection = connections[DEFAULT_DB_ALIAS]
    with connection.cursor() as cursor:
        present = set(connection.introspection.table_names(cursor))
        begin = tuple(f"{app.label}_" for app in apps.get_app_configs())
        ours = {table.name for table in tables.all_tables()} | {"django_migrations"}
        for name in sorted(name for name in present if name in ours or name.startswith(begin)):
            cursor.execute(f"DROP TABLE {connection.ops.quote_name(name)} CASCADE")


def _replace(fresh: Path | None, place: Path, aside: Path) -> None:
    """Moves what is at `place` to `aside`, and `fresh` to `place`, where there is one."""
    if place.exists():
        aside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.move(place, aside)
    if fresh is not None and fresh.exists():
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.move(fresh, place)
