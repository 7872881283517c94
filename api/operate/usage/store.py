"""Every query on the use. All of them block."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args

from django.db import transaction
from django.db.models import F, Sum

from api.accounts.models import ApiKey
from api.operate.history.models import UsageRow
from api.operate.history.read import cell
from api.storage.text import storable

if TYPE_CHECKING:
    from api.operate.usage.log import Entry, Sums

Grouping = Literal["day", "user", "key", "model"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
SUMS = ("requests", "failed", "prompt_tokens", "completion_tokens")
KEEP_DAYS = 400
MOST_ROWS = 10_000


@transaction.atomic
def add(sums: "Mapping[Entry, Sums]") -> None:
    """Adds to what is stored; in one order, so that two processes never wait for each other."""
    for entry in sorted(sums, key=lambda entry: (entry.day, entry.user, entry.key, entry.model)):
        fields = {
            "day": entry.day,
            "user": storable(entry.user),
            "key": entry.key[:16],
            "model": storable(entry.model[:255]),
        }
        UsageRow.objects.get_or_create(**fields)
        more = {name: F(name) + value for name, value in asdict(sums[entry]).items()}
        UsageRow.objects.filter(**fields).update(**more)


def read(
    by: Sequence[Grouping], since: date, until: date, user: str | None = None
) -> list[dict[str, Any]]:
    """The sums of [since, until], by these columns, the largest use first within a day.

    A key comes with its user and its label.
    """
    columns: list[str] = list(dict.fromkeys(by))
    if "key" in columns and "user" not in columns:
        columns.insert(columns.index("key"), "user")
    rows = UsageRow.objects.filter(day__gte=since, day__lte=until)
    if user is not None:
        rows = rows.filter(user=user)
    totals = {f"sum_{name}": Sum(name) for name in SUMS}
    order = ["-day"] if "day" in columns else []
    grouped = rows.order_by().values(*columns).annotate(**totals)
    lines = []
    for line in grouped.order_by(*order, "-sum_requests", *columns)[:MOST_ROWS]:
        values = {column: line[column] for column in columns}
        lines.append({**values, **{name: line[f"sum_{name}"] for name in SUMS}})
    if "key" in columns:
        _add_labels(lines)
    return lines


def as_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """With a line of names."""
    text = io.StringIO()
    writer = csv.writer(text)
    if lines:
        writer.writerow(lines[0])
    for line in lines:
        values = []
        for value in line.values():
            values.append(cell(value) if isinstance(value, str) else value)
        writer.writerow(values)
    return text.getvalue()


def remove_old(today: date) -> None:
    """Removes what is older than KEEP_DAYS."""
    UsageRow.objects.filter(day__lt=today - timedelta(days=KEEP_DAYS)).delete()


def _add_labels(lines: Sequence[dict[str, Any]]) -> None:
    names = {line["key"] for line in lines}
    labels = dict(ApiKey.objects.filter(name__in=names).values_list("name", "label"))
    for line in lines:
        line["label"] = labels.get(line["key"], "")
