"""The table of hostile requests and broken surroundings, and what innocent requests notice."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.faults.innocents import Noticed

_HEADINGS = (
    "fault",
    "what",
    "innocent requests",
    "refused",
    "lost",
    "longest pause",
    "undisturbed",
    "slower by",
)


@dataclass(frozen=True)
class HostileRow:
    """One fault. `quiet`: the same innocent requests before it."""

    fault: str
    what: str
    beside: Noticed
    quiet: Noticed

    @property
    def slower(self) -> float:
        """By what part a typical answer took longer than undisturbed: 0.5 is half as long again."""
        return self.beside.typical / self.quiet.typical - 1.0


def render(rows: Sequence[HostileRow]) -> str:
    """The table as Markdown."""
    lines = [_HEADINGS]
    lines += [_cells(row) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    drawn = [_line(line, widths) for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([drawn[0], rule, *drawn[1:]])


def _cells(row: HostileRow) -> tuple[str, ...]:
    return (
        row.fault,
        row.what,
        str(row.beside.answers),
        str(len(row.beside.refused)),
        str(len(row.beside.lost)),
        f"{1000 * row.beside.pause:.0f} ms",
        f"{1000 * row.quiet.pause:.0f} ms",
        f"{100 * row.slower:+.0f} %",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return "| " + " | ".join(padded) + " |"
