"""The database's schema: brought up to date by migrations, refused where it is newer than ours."""

from collections.abc import Callable, Iterable
from typing import Any

from django.core.management import call_command
from django.core.management.commands.migrate import Command
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

Name = tuple[str, str]  # an app, and one of its migrations
_MOST_NAMED = 3
_RECOVERY = (
    "Use the version that wrote it, or restore a backup made before it "
    "(./canopy restore FILE --force)"
)


class UnfitDatabase(Exception):
    """This code cannot use the database; the text says what to do. The operator's to mend."""


def check_known(applied: Iterable[Name], what: str = "the database") -> None:
    """Raises UnfitDatabase if migrations were applied to `what` that this code does not have."""
    loader = MigrationLoader(None)
    known = set(loader.disk_migrations)
    for migration in loader.disk_migrations.values():
        known.update(migration.replaces)
    unknown = sorted(f"{app}.{name}" for app, name in set(applied) - known)
    if not unknown:
        return
    names = ", ".join(unknown[:_MOST_NAMED])
    if len(unknown) > _MOST_NAMED:
        names += f" and {len(unknown) - _MOST_NAMED} more"
    raise UnfitDatabase(
        f"{what} was written by a newer version of Canopy: it has {names}, "
        f"which this one does not know. {_RECOVERY}"
    )


def applied(using: str = DEFAULT_DB_ALIAS) -> set[Name]:
    """The migrations that the database has. Raises DatabaseError."""
    return set(MigrationRecorder(connections[using]).applied_migrations())


def check_current(using: str = DEFAULT_DB_ALIAS) -> None:
    """Raises UnfitDatabase if the schema is another than this code's."""
    present = applied(using)
    check_known(present)
    loader = MigrationLoader(connections[using])
    missing = set(loader.graph.leaf_nodes()) - set(loader.applied_migrations)
    if missing:
        names = ", ".join(sorted(f"{app}.{name}" for app, name in missing)[:_MOST_NAMED])
        raise UnfitDatabase(
            f"the database is older than this version of Canopy: it lacks {names}. "
            "./canopy up brings it up to date, as does python -m api migrate"
        )


def migrate(say: Callable[[str], None], using: str = DEFAULT_DB_ALIAS) -> None:
    """Brings the schema up to date; says the name of each migration that it applies.

    A new database gets them all: that is one line. Raises UnfitDatabase, DatabaseError.
    """
    present = applied(using)
    check_known(present)
    command = _Migrate(say if present else None)
    call_command(command, database=using, verbosity=0, interactive=False)
    if not present:
        say(f"created the database's tables ({len(applied(using))} migrations)")


class _Migrate(Command):
    """Django's command, which tells us what it does instead of printing it."""

    def __init__(self, say: Callable[[str], None] | None) -> None:
        super().__init__()
        self._say = say

    def migration_progress_callback(
        self, action: str, migration: Any = None, fake: bool = False
    ) -> None:
        """Called at each step of each migration."""
        if action == "apply_start" and self._say is not None:
            self._say(f"migrating the database: {migration}")
