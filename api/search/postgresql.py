"""PostgreSQL: a generated tsvector column with a GIN index; words are found by their beginning.

The configuration is `simple`: users write in any language. What is no plain word (Chinese,
Japanese, Thai, `foo.bar`) is sought without the index.
"""

import re
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from api.search.query import Query

# A tsvector has at most 1 MiB; so many characters of any text are less.
_INDEXED_CHARACTERS = 100_000
_STATEMENTS = (
    f"""
    ALTER TABLE chat_message ADD COLUMN IF NOT EXISTS search tsvector GENERATED ALWAYS AS (
        CASE WHEN status = 'streaming' THEN ''::tsvector
        ELSE to_tsvector('simple', left(content, {_INDEXED_CHARACTERS})) END
    ) STORED
    """,
    "CREATE INDEX IF NOT EXISTS chat_message_search ON chat_message USING gin (search)",
    """
    ALTER TABLE chat_message ADD COLUMN IF NOT EXISTS search_attachments tsvector GENERATED ALWAYS
    AS (jsonb_to_tsvector('simple', attachments, '["string"]')) STORED
    """,
    """
    CREATE INDEX IF NOT EXISTS chat_message_search_attachments
    ON chat_message USING gin (search_attachments)
    """,
)
_TEXT = """
m.content || coalesce((SELECT string_agg(
    chr(10) || (each.value ->> 'name') || chr(10) || (each.value ->> 'text'), ''
) FROM jsonb_array_elements(m.attachments) AS each), '')
"""
_HAS_WORD = (
    "(m.search @@ to_tsquery('simple', %s) OR m.search_attachments @@ to_tsquery('simple', %s))"
)
_WITHOUT_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_AROUND_WORDS = re.compile(r"^\W+|\W+$")


class PostgresqlIndex:
    """See the module."""

    text = _TEXT

    def ensure(self, connection: BaseDatabaseWrapper) -> None:
        """Creates the columns and their indexes."""
        with connection.cursor() as cursor:
            for statement in _STATEMENTS:
                cursor.execute(statement)

    def condition(self, query: Query) -> tuple[str, list[Any]]:
        """A word with signs around it, such as `50%`, is found by the index, then compared."""
        conditions: list[str] = []
        parameters: list[Any] = []
        for term in query.terms:
            word = _AROUND_WORDS.sub("", term)
            indexed = word.isalnum() and not _WITHOUT_SPACES.search(word)
            if indexed:
                conditions.append(_HAS_WORD)
                parameters += [f"'{word}':*"] * 2
            if not indexed or word != term:
                conditions.append(f"(m.status <> 'streaming' AND {self.text} ILIKE %s)")
                parameters.append(f"%{_escaped(term)}%")
        return " AND ".join(conditions), parameters


def _escaped(term: str) -> str:
    return term.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
