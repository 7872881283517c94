"""Databases beside the instance's own: a copy in a file, or the target of a move."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import dj_database_url
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections

from api import database_url
from api.data.errors import DataError

SQLITE, POSTGRESQL = "sqlite", "postgresql"
# One file without a write-ahead log beside it, to be moved as it is.
_ONE_FILE = {"timeout": 10, "init_command": "PRAGMA journal_mode=DELETE; PRAGMA synchronous=NORMAL"}


def vendor() -> str:
    """Of the instance's own database."""
    return connections[DEFAULT_DB_ALIAS].vendor


def own_file() -> Path | None:
    """The file of the instance's own database, if it is one."""
    if vendor() != SQLITE:
        return None
    return Path(connections.settings[DEFAULT_DB_ALIAS]["NAME"])


def check_unused() -> None:
    """Raises DataError while another process of Canopy uses the instance's PostgreSQL database.

    The lock of CANOPY_HOME keeps this machine's instance out, and no instance elsewhere. Processes
    of the API keep their connections open.
    """
    if vendor() != POSTGRESQL:
        return
    with connections[DEFAULT_DB_ALIAS].cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT coalesce(host(client_addr), 'this machine') FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = %s "
            "AND pid <> pg_backend_pid()",
            [settings.APPLICATION_NAME],
        )
        places = sorted(place for (place,) in cursor.fetchall())
    if places:
        raise DataError(
            f"another instance uses this database now (from {', '.join(places)}): stop it first, "
            "or name another database in DATABASE_URL"
        )


@contextmanager
def opened(alias: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Makes a database known to Django under `alias` while the block runs."""
    base = {**connections.settings[DEFAULT_DB_ALIAS], "OPTIONS": {}}
    connections.settings[alias] = {**base, **config}
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.settings[alias]


@contextmanager
def reached(alias: str, config: Mapping[str, Any]) -> Iterator[str]:
    """As `opened`, of a database elsewhere. Raises DataError if it cannot be reached."""
    with opened(alias, config):
        try:
            connections[alias].ensure_connection()
        except DatabaseError as error:
            reason = " ".join(str(error).split())
            raise DataError(f"the target cannot be reached: {reason}") from error
        yield alias


def file_config(file: Path) -> dict[str, Any]:
    """Of an SQLite database in a file that nobody else has open."""
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(file), "OPTIONS": _ONE_FILE}


def postgresql_config(url: str) -> dict[str, Any]:
    """Of the PostgreSQL database at that address. Raises DataError."""
    try:
        database_url.check_postgresql(url)
    except ValueError as error:
        raise DataError(f"the target {error}") from None
    try:
        import psycopg  # noqa: F401 - only users of PostgreSQL need it
    except ImportError as error:
        advice = ".venv/bin/pip install 'psycopg[binary]'"
        raise DataError(f"PostgreSQL needs the package psycopg: {advice}") from error
    return dict(dj_database_url.parse(url))


def copy_file(source: Path, target: Path) -> None:
    """Copies an SQLite database that is in use, as it is at one moment. Raises DataError."""
    if not source.exists():
        raise DataError(f"there is no database yet ({source}): start Canopy with ./canopy up first")
    target.touch(mode=0o600)
    try:
        with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(target)) as copy:
            live.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:  # such as a full disk
        raise DataError(f"{source} cannot be copied to {target.parent}: {error}") from error


def check_file(file: Path) -> None:
    """Raises DataError if an SQLite database is damaged."""
    try:
        with closing(sqlite3.connect(file)) as database:
            (answer,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        answer = str(error)
    if answer != "ok":
        raise DataError(f"the database in the backup is damaged: {answer}")
