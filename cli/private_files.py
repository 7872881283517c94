"""Files of an instance that only their owner can read. Standard library only."""

import json
import os
from pathlib import Path
from typing import Any


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or broken."""
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict):
        return {}
    return document


def write_private(file: Path, text: str) -> None:
    """Writes a file that only its owner can read, atomically. Raises OSError."""
    fresh = file.with_name(file.name + ".new")
    handle = os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    fresh.chmod(0o600)
    os.replace(fresh, file)
