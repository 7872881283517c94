"""Whether the database can be read and written: its migrations, its disk."""

import contextlib
import os
import shutil
from pathlib import Path

from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from api.storage import outages

LEAST_FREE = 10_000_000  # bytes; with less, any answer that is stored may be the one that fails
_BLOCK = 4096


class StorageCheck:
    """Whether the database is usable. Blocks: called in a thread."""

    def __init__(self) -> None:
        self._is_migrated = False  # looked up until it is true; after that a query suffices

    def problem(self) -> str | None:
        """What keeps the database from being used."""
        problem = self._database_problem()
        folder = database_folder()
        if problem is None and folder is not None:
            problem = disk_problem(folder)
        return problem

    def _database_problem(self) -> str | None:
        try:
            if not self._is_migrated:
                executor = MigrationExecutor(connection)
                if executor.migration_plan(executor.loader.graph.leaf_nodes()):
                    return "the database is not migrated"
                self._is_migrated = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except DatabaseError as error:
            return f"{outages.meaning(error)}: {error}"
        return None


def database_folder() -> Path | None:
    """Where SQLite writes; None for a database elsewhere, whose disk is not ours to see."""
    database = settings.DATABASES["default"]
    return Path(database["NAME"]).parent if database["ENGINE"].endswith("sqlite3") else None


def disk_problem(folder: Path) -> str | None:
    """Why nothing can be stored in the folder: too little is free, or a file cannot be written."""
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE:
        return (
            f"the database's disk is full: {free / 1e6:.1f} of {LEAST_FREE / 1e6:.0f} MB are free"
        )
    attempt = folder / f".write-check-{os.getpid()}"
    try:
        attempt.write_bytes(bytes(_BLOCK))
    except OSError as error:
        return f"nothing can be written beside the database: {error.strerror}"
    finally:
        with contextlib.suppress(OSError):
            attempt.unlink()
    return None
