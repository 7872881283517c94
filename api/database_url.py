"""Addresses of databases, as `DATABASE_URL` has them: sqlite:///FILE, postgresql://user@host/name.

Standard library only: it is read before Django is.
"""

from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

_SQLITE = "sqlite"
_POSTGRESQL = ("postgresql", "postgres")
_FILE = f"{_SQLITE}:///"


def of_file(file: Path) -> str:
    """The address of an SQLite file, whatever characters its path has."""
    return _FILE + quote(str(file))


def file_of(url: str) -> Path | None:
    """The SQLite file at that address; None for another kind of database."""
    if not url.startswith(_FILE):
        return None
    return Path(unquote(urlsplit(url).path.removeprefix("/")))


def check(url: str) -> None:
    """Raises ValueError, whose text has nothing of the address: it may have a password in it."""
    if url.startswith(f"{_SQLITE}:"):
        return
    check_postgresql(url)


def check_postgresql(url: str) -> None:
    """As `check`, for what must be PostgreSQL."""
    form = "must be like postgresql://user@host/database"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ValueError(
            f"{form}, with / ? # [ ] @ : and % in a password written as %2F and so on"
        ) from error
    if parts.scheme not in _POSTGRESQL:
        raise ValueError(form)
    if not parts.path.removeprefix("/"):
        raise ValueError(f"{form}: it names no database")
