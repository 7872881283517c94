"""All tables of the apps, as rows that any of the supported databases can take."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.core.management.color import no_style
from django.db import DatabaseError, connections, transaction
from django.db.models import AutoField, Model

from api.data.databases import POSTGRESQL
from api.data.errors import DataError
from api.data.progress import Progress

_AT_ONCE = 1000  # rows


@dataclass(frozen=True)
class Table:
    """The rows of one model."""

    model: type[Model]

    @property
    def name(self) -> str:
        """In the database."""
        return self.model._meta.db_table

    @property
    def fields(self) -> list[Any]:
        """Its columns."""
        return [field for field in self.model._meta.concrete_fields if not field.generated]

    def count(self, using: str) -> int:
        """How many rows it has there."""
        return self.model._base_manager.using(using).count()

    def batches(self, using: str) -> Iterator[list[tuple[Any, ...]]]:
        """Its rows in the order of their keys, `_AT_ONCE` together."""
        names = [field.attname for field in self.fields]
        rows = self.model._base_manager.using(using).order_by("pk").values_list(*names)
        batch = []
        for row in rows.iterator(chunk_size=_AT_ONCE):
            batch.append(row)
            if len(batch) == _AT_ONCE:
                yield batch
                batch = []
        if batch:
            yield batch

    def insert(self, using: str, rows: list[tuple[Any, ...]]) -> None:
        """Stores rows as they are: neither defaults nor `auto_now` change them."""
        connection = connections[using]
        fields = self.fields
        columns = ", ".join(connection.ops.quote_name(field.column) for field in fields)
        places = ", ".join(["%s"] * len(fields))
        statement = f"INSERT INTO {self.quoted(using)} ({columns}) VALUES ({places})"  # noqa: S608
        prepared = []
        for row in rows:
            pairs = zip(fields, row, strict=True)
            prepared.append([field.get_db_prep_save(value, connection) for field, value in pairs])
        with connection.cursor() as cursor:
            cursor.executemany(statement, prepared)

    def quoted(self, using: str) -> str:
        """Its name in a statement."""
        return connections[using].ops.quote_name(self.name)


def all_tables() -> list[Table]:
    """Of every app, with those of many-to-many fields."""
    tables = []
    for model in apps.get_models(include_auto_created=True):
        if model._meta.managed and not model._meta.proxy:
            tables.append(Table(model))
    return tables


def counts(using: str) -> dict[str, int]:
    """Rows by table."""
    return {table.name: table.count(using) for table in all_tables()}


def existing_counts(using: str) -> dict[str, int]:
    """Rows by table, of a database that may be older than this code."""
    with connections[using].cursor() as cursor:
        present = connections[using].introspection.table_names(cursor)
        rows = {}
        for name in sorted({table.name for table in all_tables()} & set(present)):
            cursor.execute(f"SELECT count(*) FROM {connections[using].ops.quote_name(name)}")  # noqa: S608
            (rows[name],) = cursor.fetchone()
    return rows


def copy_all(source: str, target: str, step: str) -> dict[str, int]:
    """Copies every row into a database of the same schema, in place of what it has.

    Call it in a transaction of `target`, and of `source` if others write there. Foreign keys are
    checked at the transaction's end, so the order of the tables does not matter. Returns the
    verified numbers of rows. Raises DataError.
    """
    tables = all_tables()
    expected = counts(source)
    progress = Progress(step, sum(expected.values()), "rows")
    with connections[target].cursor() as cursor:
        if connections[target].vendor == POSTGRESQL:  # migrations have some checked at once
            cursor.execute("SET CONSTRAINTS ALL DEFERRED")
        for table in tables:  # migrations have put permissions and content types there
            cursor.execute(f"DELETE FROM {table.quoted(target)}")  # noqa: S608 - our own name
    for table in tables:
        for rows in table.batches(source):
            _insert(table, target, rows)
            progress.add(len(rows))
    _set_sequences(target, sequences(source))
    found = counts(target)
    for name, number in expected.items():
        if found[name] != number:
            raise DataError(f"{name} has {found[name]} rows after the copy, not {number}")
    return found


def _insert(table: Table, target: str, rows: list[tuple[Any, ...]]) -> None:
    try:
        with transaction.atomic(using=target):
            table.insert(target, rows)
    except (DatabaseError, ValueError) as error:
        first, last = rows[0][0], rows[-1][0]
        reason = str(error).strip().partition("\n")[0]
        place = f"{table.name}, one of the rows {first} to {last}"
        raise DataError(f"a row cannot be copied ({place}): {reason}") from error


def sequences(using: str) -> dict[str, int]:
    """The last key given out, by table: the keys of deleted rows must not come again."""
    with connections[using].cursor() as cursor:
        if connections[using].vendor != POSTGRESQL:
            cursor.execute("SELECT name, seq FROM sqlite_sequence")
            return dict(cursor.fetchall())
        last = {}
        for name, column in _serial_columns():
            cursor.execute("SELECT pg_get_serial_sequence(%s, %s)", [f'"{name}"', column])
            (sequence,) = cursor.fetchone()
            if sequence is not None:
                cursor.execute(f"SELECT last_value FROM {sequence} WHERE is_called")  # noqa: S608
                row = cursor.fetchone()
                last[name] = row[0] if row else 0
        return last


def _set_sequences(using: str, last: Mapping[str, int]) -> None:
    connection = connections[using]
    models = [table.model for table in all_tables()]
    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), models):
            cursor.execute(statement)
        for name, column in _serial_columns():
            number = last.get(name, 0)
            if number and connection.vendor == POSTGRESQL:
                cursor.execute(
                    "SELECT setval(pg_get_serial_sequence(%s, %s), %s)",
                    [f'"{name}"', column, number],
                )
            elif number:
                cursor.execute("DELETE FROM sqlite_sequence WHERE name = %s", [name])
                row = [name, number]
                cursor.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (%s, %s)", row)


def _serial_columns() -> Iterator[tuple[str, str]]:
    for table in all_tables():
        key = table.model._meta.pk
        if isinstance(key, AutoField):
            yield table.name, key.column
