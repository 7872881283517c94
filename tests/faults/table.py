"""The table of the fault matrix: one row a fault, printed at the end of the run."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles

P95_SAMPLES = 20  # fewer say nothing about the slowest twentieth


@dataclass(frozen=True)
class Row:
    """What happened to the jobs around a fault. `recoveries`: seconds until a stream went on."""

    fault: str
    where: str
    accepted: int
    answered: int  # once, and exactly
    told: int  # failed as they had to; their readers know why
    lost: int
    wrong: int  # text repeated, missing or foreign; wrong usage; an end that was not due
    recoveries: tuple[float, ...] = ()

    @property
    def slowest(self) -> float | None:
        """The slowest recovery."""
        return max(self.recoveries, default=None)

    @property
    def p95(self) -> float | None:
        """The recovery that 95 % do not exceed, where there are enough to say."""
        return quantiles(self.recoveries, n=20)[-1] if len(self.recoveries) >= P95_SAMPLES else None


_HEADINGS = (
    "fault",
    "where",
    "accepted",
    "answered once",
    "told why",
    "lost",
    "repeated or wrong",
    "slowest recovery",
    "p95",
)


def render(rows: Sequence[Row]) -> str:
    """The table as Markdown, which reads well in a terminal too."""
    lines = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    drawn = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        drawn.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [drawn[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *drawn[1:]]
    )


def write(rows: Sequence[Row], file: Path) -> None:
    """The rows as JSON."""
    records = [{**asdict(row), "slowest": row.slowest, "p95": row.p95} for row in rows]
    file.write_text(json.dumps(records, indent=1))


def _cells(row: Row) -> tuple[str, ...]:
    counts = (row.accepted, row.answered, row.told, row.lost, row.wrong)
    return (row.fault, row.where, *map(str, counts), _seconds(row.slowest), _seconds(row.p95))


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"
