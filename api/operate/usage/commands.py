"""`python -m api usage …`: the use by user, key and model (`./canopy usage`)."""

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

GROUPINGS = ("day", "user", "key", "model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `usage`."""
    parser.add_argument("--by", action="append", choices=GROUPINGS)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--user")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV")


def run(options: argparse.Namespace) -> int:
    """Prints the use of a migrated database; returns the exit status."""
    from api.operate.usage import store

    today = datetime.now(UTC).date()
    since = today - timedelta(days=max(1, min(options.days, store.KEEP_DAYS)) - 1)
    lines = store.read(options.by or ["user"], since, today, options.user)
    if options.json:
        print(json.dumps({"days": options.days, "use": lines}, default=str))
    elif options.csv:
        print(store.as_csv(lines), end="")
    else:
        print("\n".join(table(lines)))
    return 0


def table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines below their names, in columns."""
    if not lines:
        return ["Nothing was asked in this time."]
    rows = [[name.replace("_", " ") for name in lines[0]]]
    rows += [[str(value) or "-" for value in line.values()] for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
