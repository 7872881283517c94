"""`migrate-db`: every row from the instance's SQLite file to an empty PostgreSQL database.

The rows are read from a copy of the file, which is brought to this code's schema first: the file
itself is never written. The target gets all or nothing, in one transaction.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from django.conf import settings
from django.db import connections, transaction

from api.data import databases, tables
from api.data.errors import DataError
from api.data.progress import say
from api.storage import schema

_SOURCE, _TARGET = "source", "target"  # Django's names of the two
_MOST_NAMED = 3


def move(url: str) -> dict[str, int]:
    """Copies everything; returns the verified numbers of rows by table.

    Call it with the instance's lock held. Raises DataError, UnfitDatabase, DatabaseError, OSError.
    """
    own = databases.own_file()
    if own is None:
        raise DataError("the instance's database is PostgreSQL already (DATABASE_URL)")
    config = databases.postgresql_config(url)
    with TemporaryDirectory(prefix=".migrate-db-", dir=settings.ENV.home) as folder:
        copy = Path(folder) / "source.sqlite3"
        databases.copy_file(own, copy)
        with (
            databases.opened(_SOURCE, databases.file_config(copy)) as source,
            databases.reached(_TARGET, config) as target,
            transaction.atomic(using=target),
        ):
            _check_empty(target)
            schema.migrate(say, source)
            schema.migrate(say, target)
            return tables.copy_all(source, target, "copying")


def _check_empty(target: str) -> None:
    with connections[target].cursor() as cursor:
        present = connections[target].introspection.table_names(cursor)
    if present:
        names = ", ".join(sorted(present)[:_MOST_NAMED])
        raise DataError(
            f"the target is not empty (it has {names}, ...): make a new database for it"
        )
