"""Database outages, such as a full disk, in one sentence each."""

from django.db import DatabaseError, InterfaceError, OperationalError

# A part of each of SQLite's and PostgreSQL's messages, in lower case, and what it means here.
_MEANINGS = (
    ("disk is full", "the disk of the service is full"),
    ("no space left", "the disk of the service is full"),
    ("disk i/o error", "the disk of the service does not work"),
    (
        "unable to open database file",
        "the service cannot open its database: its disk is full or not writable",
    ),
    ("readonly database", "the service's database is read-only now"),
    ("read-only transaction", "the service's database is read-only now"),
    ("database is locked", "the service's database is busy for too long"),
    ("database table is locked", "the service's database is busy for too long"),
    ("no such table", "the service's database is not migrated"),
)
_UNKNOWN_CAUSE = "the service's database does not answer"
_TRY_AGAIN = "; nothing was stored, try again later"


def describe(error: BaseException) -> str | None:
    """The reason for the client if the error, or one of its causes, is an outage; else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OperationalError | InterfaceError):
            return meaning(cause) + _TRY_AGAIN
        cause = cause.__cause__
    return None


def meaning(error: DatabaseError | InterfaceError) -> str:
    """What a database's message means for the service."""
    text = str(error).lower()
    for part, sentence in _MEANINGS:
        if part in text:
            return sentence
    return _UNKNOWN_CAUSE
