"""Every query on the history: minutes are added, made into hours, and removed when they are old.

Its size is bounded: at most 350 names (counts.STORED) and three times OTHERS a minute and process
for 25 hours, and the same an hour for 90 days: 530,000 rows for each API process, and 760,000.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Case, CharField, F, Max, Min, QuerySet, Sum, Value, When

from api.operate.history.counts import KINDS, OTHERS, Counts, Kind, Tally
from api.operate.history.histogram import Histogram
from api.operate.history.models import HistoryRow
from api.storage.text import storable

MINUTE, HOUR, DAY = 60, 3600, 86_400
KEEP_MINUTES = DAY + HOUR  # seconds
KEEP_HOURS = 90 * DAY
LATE_SECONDS = 300  # after an hour's end, until which processes may add to it
MOST_HISTOGRAMS = 100_000  # read at a time, which takes about a second
_AT_ONCE = 5_000  # rows deleted in one transaction, so that no writer waits for long
_SUMS = (
    "requests",
    "failed",
    "cancelled",
    "prompt_tokens",
    "completion_tokens",
    "busy_seconds",
    "slot_seconds",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """The counts of one name in one minute or hour."""

    start: int
    name: str
    counts: Counts


def rows_of(seconds: int, start: int, tally: Tally, process: str) -> list[HistoryRow]:
    """The counts as rows that are not stored yet."""
    rows = []
    for kind, name, counts in tally.bounded():
        rows.append(_row(seconds, start, kind, name, process, counts))
    return rows


@transaction.atomic
def replace_minutes(starts: Collection[int], rows: Sequence[HistoryRow], process: str) -> None:
    """Stores all rows of a process's minutes, instead of those stored before."""
    HistoryRow.objects.filter(seconds=MINUTE, start__in=starts, process=process).delete()
    HistoryRow.objects.bulk_create(rows, batch_size=500)


def busiest(kind: Kind, start: int, end: int, hours_until: int, most: int) -> list[str]:
    """The names with the most requests and use of slots in [start, end), the first one's first."""
    weights: Counter[str] = Counter()
    for rows in _rows(kind, start, end, hours_until):
        sums = rows.values("name").annotate(weight=Sum("requests") + Sum("busy_seconds"))
        for name, weight in sums.values_list("name", "weight"):
            weights[name] += weight
    weights.pop(OTHERS, None)
    return sorted(weights, key=lambda name: (-weights[name], name))[:most]


def sums(
    kind: Kind,
    start: int,
    end: int,
    hours_until: int,
    step: int,
    names: Sequence[str],
    columns: Sequence[str],
) -> Iterator[tuple[int, str, Sequence[float]]]:
    """The columns' sums by step (its start) and name; names that are not given count as OTHERS."""
    shown = Case(
        When(name__in=names, then=F("name")), default=Value(OTHERS), output_field=CharField()
    )
    totals = {f"sum_{column}": Sum(column) for column in columns}
    for rows in _rows(kind, start, end, hours_until):
        steps = rows.annotate(step=F("start") - F("start") % step, shown=shown)
        summed = steps.order_by().values("step", "shown").annotate(**totals)
        for at, name, *values in summed.values_list("step", "shown", *totals):
            yield at, name, values


def histograms(
    kind: Kind, start: int, end: int, hours_until: int, names: Sequence[str] | None, column: str
) -> Iterator[tuple[int, str, str]]:
    """The encoded histograms, and where their minutes or hours start.

    Names that are not given count as OTHERS; beyond MOST_HISTOGRAMS they are left out. `names`:
    None for all of them.
    """
    chosen = [rows.exclude(**{column: ""}) for rows in _rows(kind, start, end, hours_until)]
    if names is not None and sum(rows.count() for rows in chosen) > MOST_HISTOGRAMS:
        chosen = [rows.filter(name__in=names) for rows in chosen]
    for rows in chosen:
        columns = rows.values_list("start", "name", column)
        for at, name, encoded in columns.iterator(chunk_size=2000):
            has_line = names is None or name in names
            yield at, name if has_line else OTHERS, encoded


def pieces(kind: Kind, start: int, end: int, hours_until: int) -> Iterator[Piece]:
    """What there is of [start, end): hours up to `hours_until`, minutes from there on."""
    yield from _read(HOUR, kind, start, min(end, hours_until))
    yield from _read(MINUTE, kind, max(start, hours_until), end)


def rolled_until() -> int:
    """Where the last hour that has been made of minutes ends; 0 if there is none."""
    last = HistoryRow.objects.filter(seconds=HOUR).aggregate(last=Max("start"))["last"]
    if last is None:
        return 0
    return int(last) + HOUR


def roll_up(now: int) -> None:
    """Makes hours of the minutes of all hours that are over."""
    first = HistoryRow.objects.filter(seconds=MINUTE, start__gte=rolled_until()).aggregate(
        first=Min("start")
    )["first"]
    if first is None:
        return
    hour = int(first) // HOUR * HOUR
    while hour + HOUR + LATE_SECONDS <= now:
        _roll_up_hour(hour)
        hour += HOUR


@transaction.atomic
def _roll_up_hour(hour: int) -> None:
    tally = Tally()
    for kind in KINDS:
        for piece in _read(MINUTE, kind, hour, hour + HOUR):
            tally.of(kind, piece.name).merge(piece.counts)
    rows = rows_of(HOUR, hour, tally, process="")
    HistoryRow.objects.bulk_create(rows, batch_size=500, ignore_conflicts=True)


def remove_old(now: int) -> int:
    """Removes some of what is too old; returns how many rows. Minutes only when they are hours."""
    oldest_minute = min(now - KEEP_MINUTES, rolled_until())
    removed = _remove(MINUTE, oldest_minute)
    return removed + _remove(HOUR, now - KEEP_HOURS)


def _remove(seconds: int, before: int) -> int:
    rows = HistoryRow.objects.filter(seconds=seconds, start__lt=before)
    keys = list(rows.values_list("pk", flat=True)[:_AT_ONCE])
    deleted, _ = HistoryRow.objects.filter(pk__in=keys).delete()
    return int(deleted)


def _rows(kind: Kind, start: int, end: int, hours_until: int) -> list["QuerySet[HistoryRow]"]:
    """Hours up to `hours_until`, minutes from there on."""
    chosen = []
    if start < hours_until:
        chosen.append(_of(HOUR, kind, start, min(end, hours_until)))
    if end > hours_until:
        chosen.append(_of(MINUTE, kind, max(start, hours_until), end))
    return chosen


def _of(seconds: int, kind: Kind, start: int, end: int) -> "QuerySet[HistoryRow]":
    return HistoryRow.objects.filter(seconds=seconds, kind=kind, start__gte=start, start__lt=end)


def _read(seconds: int, kind: Kind, start: int, end: int) -> Iterator[Piece]:
    for row in _of(seconds, kind, start, end).iterator(chunk_size=2000):
        yield Piece(row.start, row.name, _counts(row))


def _row(
    seconds: int, start: int, kind: Kind, name: str, process: str, counts: Counts
) -> HistoryRow:
    return HistoryRow(
        seconds=seconds,
        start=start,
        kind=kind,
        name=storable(name[:255]),
        process=process,
        waits=counts.waits.encode(),
        services=counts.services.encode(),
        **{name: getattr(counts, name) for name in _SUMS},
    )


def _counts(row: HistoryRow) -> Counts:
    return Counts(
        waits=Histogram.decode(row.waits),
        services=Histogram.decode(row.services),
        **{name: getattr(row, name) for name in _SUMS},
    )
