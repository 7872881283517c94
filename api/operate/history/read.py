"""The history as a document, for the API and the command line, and as CSV."""

import csv
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from api.operate.history import store
from api.operate.history.series import (
    ALL,
    METRICS,
    SHOWN,
    Grouping,
    Metric,
    Series,
    Span,
    SumMetric,
    kind_of,
    series,
    span,
)

_FORMULA = ("=", "+", "-", "@")  # begin a formula in a spreadsheet


@dataclass(frozen=True, slots=True)
class History:
    """One metric over a span of time."""

    metric: Metric
    by: Grouping
    unit: str
    shown: Span
    series: list[Series]


def read(metric: Metric, by: Grouping, start: int, end: int, step: int | None = None) -> History:
    """Reads the database, which takes a part of a second. Raises BadRange.

    The SHOWN busiest names have a line each, all others together one more; see store.histograms for
    when percentiles have none.
    """
    shown = span(start, end, step, int(time.time()))
    hours_until = store.rolled_until() if shown.by_hour else 0
    figure, kind, limits = METRICS[metric], kind_of(by), (shown.start, shown.end, hours_until)
    names: Sequence[str] = [ALL]
    if by != "all":
        names = store.busiest(kind, *limits, most=SHOWN)
    cells: Iterable[tuple[int, str, Any]]
    if isinstance(figure, SumMetric):
        cells = store.sums(kind, *limits, shown.step, names, figure.columns)
    else:
        cells = store.histograms(kind, *limits, None if by == "all" else names, figure.column)
    if by == "all":
        cells = ((at, ALL, part) for at, _, part in cells)
    return History(metric, by, figure.unit, shown, series(cells, shown, names, figure))


def as_csv(history: History) -> str:
    """A line for each step: its start in UTC, then each series' value."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["start", *(cell(line.name) for line in history.series)])
    for place, start in enumerate(history.shown.starts):
        moment = datetime.fromtimestamp(start, UTC).isoformat()
        values = [line.values[place] for line in history.series]
        writer.writerow([moment, *("" if value is None else value for value in values)])
    return text.getvalue()


def cell(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    if name.startswith(_FORMULA):
        return f"'{name}"
    return name
