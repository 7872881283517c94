"""SQLite: FTS5 with trigrams, which find parts of words in every script.

Triggers keep the index. A running answer is left out until it ends: it is stored every second, and
each time all of it would be indexed anew. The index keeps no text of its own (`content=''`).
"""

from typing import Any

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from api.search.query import Query

_LEAST = 3  # characters of a term that trigrams can find

# A message and its attachments. Without those it is what the former release has put in the index.
_TEXT = """
{row}.content || coalesce((SELECT group_concat(
    char(10) || json_extract(value, '$.name') || char(10) || json_extract(value, '$.text'), ''
) FROM json_each({row}.attachments)), '')
"""

_TABLE = """
CREATE VIRTUAL TABLE IF NOT EXISTS chat_message_search
USING fts5(content, content='', tokenize='trigram')
"""
# `least`: messages from this id on are in the index. The older ones follow in steps, newest first.
_STATE = "CREATE TABLE IF NOT EXISTS chat_message_search_state (least INTEGER NOT NULL)"
_BEGIN = """
INSERT INTO chat_message_search_state(least)
SELECT coalesce(max(id), 0) + 1 FROM chat_message
WHERE NOT EXISTS (SELECT 1 FROM chat_message_search_state)
"""
_STEP = 500  # ids in one transaction, so that no other writer waits for long
_FILL = """
INSERT INTO chat_message_search(rowid, content)
SELECT m.id, {text} FROM chat_message m
WHERE m.id >= %s AND m.id < %s AND m.status <> 'streaming'
""".format(text=_TEXT.format(row="m"))
_ADD_TO_INDEX = """
INSERT INTO chat_message_search(rowid, content) SELECT new.id, {text}
WHERE new.status <> 'streaming' AND new.id >= (SELECT least FROM chat_message_search_state);
"""
_REMOVE_FROM_INDEX = """
INSERT INTO chat_message_search(chat_message_search, rowid, content) SELECT 'delete', old.id, {text}
WHERE old.status <> 'streaming' AND old.id >= (SELECT least FROM chat_message_search_state);
"""
_ADD = _ADD_TO_INDEX.format(text=_TEXT.format(row="new"))
_REMOVE = _REMOVE_FROM_INDEX.format(text=_TEXT.format(row="old"))
_CHANGED = " OR ".join(
    f"old.{column} IS NOT new.{column}" for column in ("content", "attachments", "status")
)
_TRIGGERS = {
    "chat_message_search_insert": f"AFTER INSERT ON chat_message BEGIN {_ADD} END",
    "chat_message_search_delete": f"AFTER DELETE ON chat_message BEGIN {_REMOVE} END",
    # One for both steps: the order of two triggers would be SQLite's choice.
    "chat_message_search_update": f"""
        AFTER UPDATE OF content, attachments, status ON chat_message
        WHEN {_CHANGED} BEGIN {_REMOVE} {_ADD} END""",
}
_FORMER_TRIGGERS = ("chat_message_search_forget",)  # of the former release


class SqliteIndex:
    """See the module."""

    text = _TEXT.format(row="m")

    def ensure(self, connection: BaseDatabaseWrapper) -> None:
        """Creates the tables and triggers; then adds what is not in the index yet, step by step."""
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            for statement in (_TABLE, _STATE, _BEGIN):
                cursor.execute(statement)
            for name in (*_TRIGGERS, *_FORMER_TRIGGERS):
                cursor.execute(f"DROP TRIGGER IF EXISTS {name}")
            for name, rule in _TRIGGERS.items():
                cursor.execute(f"CREATE TRIGGER {name} {rule}")
        while self._fill(connection):
            pass

    def _fill(self, connection: BaseDatabaseWrapper) -> bool:
        """Adds the next older messages; False if all are there."""
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            cursor.execute("SELECT least FROM chat_message_search_state")
            (least,) = cursor.fetchone()
            if least <= 1:
                return False
            start = max(1, least - _STEP)
            cursor.execute(_FILL, [start, least])
            cursor.execute("UPDATE chat_message_search_state SET least = %s", [start])
            return True

    def condition(self, query: Query) -> tuple[str, list[Any]]:
        """Terms that are too short for trigrams are sought without the index."""
        indexed = [term for term in query.terms if len(term) >= _LEAST]
        short = [term for term in query.terms if len(term) < _LEAST]
        conditions: list[str] = []
        parameters: list[Any] = []
        if indexed:
            conditions.append(
                "m.id IN (SELECT rowid FROM chat_message_search WHERE chat_message_search MATCH %s)"
            )
            parameters.append(" AND ".join(map(_quoted, indexed)))
        for term in short:
            conditions.append(rf"(m.status <> 'streaming' AND {self.text} LIKE %s ESCAPE '\')")
            parameters.append(f"%{_escaped(term)}%")
        return " AND ".join(conditions), parameters


def _quoted(term: str) -> str:
    """A string of FTS5's query language."""
    return '"' + term.replace('"', '""') + '"'


def _escaped(term: str) -> str:
    return term.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
