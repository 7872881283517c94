"""A few rows in every table of the database, for what must copy all of them.

In the environment of an instance `python -m tests.rows fill` writes them, and `dump` prints all
rows as JSON lines, with the last key given out in each table.
"""

import datetime
import json
import sys
import uuid
from typing import Any

import django

ROWS = 3  # in each table; the last one is deleted again, so that its key has been given out


def main() -> None:
    """Does what the first argument says."""
    django.setup()
    if sys.argv[1] == "fill":
        fill()
    else:
        dump()


def fill() -> None:
    """Rows of arbitrary values within the columns' limits; the n-th refer to the n-th of others."""
    from django.db import transaction

    from api.data.tables import all_tables

    with transaction.atomic():
        empty = [table for table in all_tables() if not table.count("default")]
        for table in empty:
            for number in range(1, ROWS + 1):
                table.insert("default", [tuple(_value(field, number) for field in table.fields)])
        for table in empty:
            last = _value(table.model._meta.pk, ROWS)
            table.model._base_manager.filter(pk=last)._raw_delete("default")


def _value(field: Any, number: int) -> Any:
    if field.is_relation:
        return _value(field.target_field, number)
    if field.choices:
        choices = list(dict(field.flatchoices))
        return choices[number % len(choices)]
    kind = field.get_internal_type()
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
    values: dict[str, Any] = {
        "BooleanField": number % 2 == 0,
        "DateField": datetime.date(2026, 1, number),
        "DateTimeField": moment + datetime.timedelta(days=number),
        "FloatField": number + 0.125,
        "GenericIPAddressField": f"192.0.2.{number}",
        "JSONField": {"a": [number, None, 'ä"\n'], "": 1.5},
        "UUIDField": uuid.UUID(int=number),
        "BinaryField": bytes([number, 0, 255]),
    }
    if kind in values:
        return values[kind]
    if "Char" in kind or "Text" in kind or "Slug" in kind or "Email" in kind or "URL" in kind:
        return f"{number}ü"[: field.max_length]
    return number


def dump() -> None:
    """Every row of every table, a line each."""
    from api.data.tables import all_tables, sequences

    for table in all_tables():
        for rows in table.batches("default"):
            for row in rows:
                print(json.dumps([table.name, *row], default=str, sort_keys=True))
    for name, number in sorted(sequences("default").items()):
        if number and not name.startswith(("django_", "auth_permission")):
            # (keys of content types and permissions depend on the order of the migrations)
            print(json.dumps(["sequence", name, number]))


if __name__ == "__main__":
    main()
