"""The record of the instance that runs in a CANOPY_HOME, for other commands. Standard library only.

The launcher writes `run/instance.json` once the instance is ready, and removes it at its end.
"""

import json
from typing import Any

from cli import lock
from cli.errors import StateError
from cli.home import Home
from cli.private_files import write_private

Record = dict[str, Any]


def read(home: Home) -> Record | None:
    """The record of a ready instance; None when none is ready."""
    try:
        record = json.loads(home.instance_file.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or not lock.is_held(home):
        return None
    return record


def running(home: Home) -> Record:
    """The record of the running instance. Raises StateError when there is none."""
    record = read(home)
    if record is None:
        advice = "Start it with ./canopy up"
        if lock.is_held(home):
            advice = "It is still starting."
        raise StateError(f"Canopy is not running here ({home.path}). {advice}")
    return record


def write(home: Home, record: Record) -> None:
    """Replaces the record; it holds passwords. Raises OSError."""
    write_private(home.instance_file, json.dumps(record, indent=1))
