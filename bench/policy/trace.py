"""A trace of requests that somebody recorded: when they came, and how many tokens the answers had."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

TOKENS = (
    "generatedtokens",
    "generated_tokens",
    "output_tokens",
    "response tokens",
    "completion_tokens",
    "tokens",
)
TIMES = ("timestamp", "time", "arrival", "arrived_at")


class BadTrace(ValueError):
    """A file that is no trace; the text says why."""


@dataclass(frozen=True, slots=True)
class Trace:
    """`tokens` of each answer, and the `gaps` in seconds before each request; no gaps if the file has no times."""

    tokens: Sequence[float]
    gaps: Sequence[float]


def read(file: Path) -> Trace:
    """Reads a CSV file with a header. Its columns are known by name, as in the Azure LLM inference traces
    (TIMESTAMP, GeneratedTokens) or BurstGPT (Timestamp, Response tokens). Raises BadTrace.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            columns = {name.strip().lower(): name for name in rows.fieldnames or ()}
            tokens_column, time_column = _one_of(TOKENS, columns), _one_of(TIMES, columns)
            if tokens_column is None:
                raise BadTrace(f"{file}: no column of tokens; known names are {', '.join(TOKENS)}")
            records = [
                (row[tokens_column], row[time_column] if time_column else "0") for row in rows
            ]
        tokens = [float(count) for count, _ in records]
        times = [_seconds(moment) for _, moment in records] if time_column else []
    except (OSError, UnicodeDecodeError, csv.Error, TypeError, ValueError) as error:
        raise BadTrace(str(error)) from error
    if len(tokens) < 2:
        raise BadTrace(f"{file}: {len(tokens)} requests are no trace")
    return Trace(tokens, _gaps(times))


def _one_of(names: Iterable[str], columns: dict[str, str]) -> str | None:
    return next((columns[name] for name in names if name in columns), None)


def _seconds(moment: str) -> float:
    """A number of seconds, or a date and time."""
    try:
        return float(moment)
    except ValueError:
        return datetime.fromisoformat(moment).timestamp()


def _gaps(times: list[float]) -> list[float]:
    """The first request comes after a gap like the others'."""
    if not times:
        return []
    ordered = sorted(times)
    return [
        (ordered[-1] - ordered[0]) / (len(ordered) - 1),
        *(later - sooner for sooner, later in pairwise(ordered)),
    ]
