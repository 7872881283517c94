"""Rows of numbers as text, so that a stored answer may be vectors: a line of base64 for each."""

import base64
from collections.abc import Iterable


def as_lines(rows: Iterable[bytes]) -> str:
    """The rows as whole lines."""
    return "".join(f"{base64.b64encode(row).decode()}\n" for row in rows)


def as_rows(text: str) -> list[bytes]:
    """The rows of what `as_lines` made, or of several such texts behind each other.

    Raises ValueError for another text.
    """
    return [base64.b64decode(line, validate=True) for line in text.splitlines()]
