"""The database's own full-text index."""

from typing import Any, Protocol

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from api.search.postgresql import PostgresqlIndex
from api.search.query import Query
from api.search.sqlite import SqliteIndex


class Index(Protocol):
    """An index of the texts of all messages that have ended, with their attachments.

    `text`: SQL for the whole text of a message `m`.
    """

    text: str

    def ensure(self, connection: BaseDatabaseWrapper) -> None:
        """Creates what is missing of the index, and fills it then."""

    def condition(self, query: Query) -> tuple[str, list[Any]]:
        """SQL that is true for the messages `m` that have all terms, and its parameters."""


_INDEXES: dict[str, Index] = {"sqlite": SqliteIndex(), "postgresql": PostgresqlIndex()}


def index_of(connection: BaseDatabaseWrapper) -> Index:
    """The index for that database."""
    return _INDEXES[connection.vendor]


def ensure_index(using: str, **_signal: Any) -> None:
    """After migrations: SQLite drops a table's triggers whenever a migration alters it."""
    connection = connections[using]
    if "chat_message" in connection.introspection.table_names():
        index_of(connection).ensure(connection)
