"""The version of a state folder: `up` refuses one that a newer Canopy has used.

Standard library only. The database is checked by the API's programs (`api/storage/schema.py`).
"""

import json

from cli.errors import StateError
from cli.home import Home
from cli.private_files import read_object, write_private
from topology.version import STATE, VERSION

_MARK = "restoring"  # api/data/restore.py


def check(home: Home) -> None:
    """Raises StateError if this code must not use the folder."""
    if (home.path / _MARK).exists():
        raise StateError(
            f"A restore into {home.path} was interrupted: run it again, "
            "./canopy restore FILE --force"
        )
    record = read_object(home.version_file)
    state = record.get("state")
    if isinstance(state, int) and state > STATE:
        version = str(record.get("version", ""))[:50]
        raise StateError(
            f"{home.path} was last used by Canopy {version}, which is newer than this one "
            f"({VERSION}): use that version, set CANOPY_HOME to another folder, or restore a "
            "backup made by this version (./canopy restore FILE --force)."
        )


def record(home: Home) -> None:
    """Notes that this code uses the folder. Raises OSError."""
    text = json.dumps({"state": STATE, "version": VERSION})
    if read_object(home.version_file) != json.loads(text):
        write_private(home.version_file, text)
