"""`python -m api backup|restore|migrate-db`."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

COMMANDS = ("backup", "restore", "migrate-db")
TARGET = "CANOPY_TARGET_DATABASE_URL"  # not an argument, which others could see: it has a password


def add_arguments(commands: Any) -> None:
    """Adds the three commands."""
    for name, summary in (("backup", "write a backup"), ("restore", "restore a backup")):
        parser = commands.add_parser(name, help=summary)
        parser.add_argument("file", type=Path)
        parser.add_argument("--force", action="store_true")
        parser.add_argument("--json", action="store_true")
    parser = commands.add_parser("migrate-db", help=f"copy all rows to the database in {TARGET}")
    parser.add_argument("--json", action="store_true")


def run(options: argparse.Namespace) -> int:
    """Runs one of them; returns the exit status."""
    import django

    django.setup()
    from api.data.errors import DataError

    try:
        text, document = _run(options)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:  # such as a full disk, or a folder that is missing
        place = f" ({error.filename})" if error.filename else ""
        print(f"{error.strerror or error}{place}", file=sys.stderr)
        return 1
    print(msgspec.json.encode(document).decode() if options.json else text)
    return 0


def _run(options: argparse.Namespace) -> tuple[str, Mapping[str, Any]]:
    from django.template.defaultfilters import filesizeformat

    from api.data import backup, move, restore

    if options.command == "migrate-db":
        copied = move.move(os.environ.get(TARGET, ""))
        total = sum(copied.values())
        return f"copied {total:,} rows of {len(copied)} tables, all counted", {"rows": copied}
    if options.command == "backup":
        manifest = backup.write(options.file, force=options.force)
        size = filesizeformat(options.file.stat().st_size).replace("\xa0", " ")
        begin = f"{options.file} ({size})"
    else:
        manifest = restore.read(options.file, force=options.force)
        begin = f"restored the backup of {manifest.created}, made by Canopy {manifest.version}"
    rows, files = sum(manifest.rows.values()), manifest.files
    document = {"file": str(options.file), **msgspec.structs.asdict(manifest)}
    return f"{begin}: {rows:,} rows, {files:,} files", document
