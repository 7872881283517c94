"""`python -m api history …`: the history on the command line (`./canopy history`)."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from api.operate.history.read import History

HOUR, DAY = 3600, 86_400
SHOWN_SERIES = 6  # columns of the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `history`."""
    parser.add_argument("--metric", default="requests")
    parser.add_argument("--by", default="all")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--until", type=int, help="Unix seconds; default: now")
    parser.add_argument("--step", type=int, help="seconds")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV")


def run(options: argparse.Namespace) -> int:
    """Prints the history of a migrated database; returns the exit status."""
    from api.operate.history import read
    from api.operate.history.series import BadRange, Grouping, Metric

    problem = _unknown("metric", options.metric, get_args(Metric))
    problem = problem or _unknown("grouping", options.by, get_args(Grouping))
    if problem:
        print(problem, file=sys.stderr)
        return 2
    until = options.until or int(time.time()) + 60
    since = until - int(options.hours * HOUR)
    try:
        history = read.read(options.metric, options.by, since, until, options.step)
    except BadRange as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(document(history)))
    elif options.csv:
        print(read.as_csv(history), end="")
    else:
        print("\n".join(table(history)))
    return 0


def document(history: "History") -> dict[str, object]:
    """As `GET /api/operate/history` has it."""
    return {
        "metric": history.metric,
        "by": history.by,
        "unit": history.unit,
        "step": history.shown.step,
        "starts": history.shown.starts,
        "series": [asdict(line) for line in history.series],
    }


def table(history: "History") -> list[str]:
    """The steps in which something happened, a line each, and the total."""
    series = history.series[:SHOWN_SERIES]
    if not series:
        return ["Nothing was asked in this time."]
    rows = [[f"{history.metric} ({history.unit})", *(_printable(line.name) for line in series)]]
    for place, start in enumerate(history.shown.starts):
        values = [line.values[place] for line in series]
        if any(values):
            moment = datetime.fromtimestamp(start).astimezone()
            rows.append([f"{moment:%Y-%m-%d %H:%M}", *map(_cell, values)])
    rows.append(["in all", *(_cell(line.total) for line in series)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(series) + 1)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        for cell, width in zip(row[1:], widths[1:], strict=True):
            cells.append(cell.rjust(width))
        lines.append("  ".join(cells))
    return lines


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _unknown(kind: str, name: str, choices: tuple[str, ...]) -> str:
    if name in choices:
        return ""
    return f"there is no {kind} {name!r}; choose one of {', '.join(choices)}"
