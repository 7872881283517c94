"""A result: printed as tables for people, written as JSON for machines."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import machine as facts_of

JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Also write the result to this file.")
]
Cell = str | int | float | None
_FILE_WIDTH = 140  # of what is printed into a file


@dataclass(frozen=True)
class Rows:
    """One table. Numbers are right-aligned; floats are shown with `digits` decimals."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    digits: int = 2

    def as_records(self) -> list[dict[str, Cell]]:
        """A record a row, for JSON."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


@dataclass
class Report:
    """One run of one benchmark. `notes` say what the numbers do and do not mean."""

    name: str
    settings: Mapping[str, object]
    tables: list[Rows] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)  # results that are no table, JSON only
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: dict[str, object] = field(default_factory=facts_of.machine)
    versions: dict[str, str] = field(default_factory=facts_of.versions)

    def show(self, console: Console | None = None) -> None:
        """Prints everything on standard output."""
        out = console or Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
        for table in self.tables:
            out.print(_drawn(table))
        for note in self.notes:
            out.print(f"- {note}", highlight=False, markup=False)
        here = self.machine
        out.print(
            f"{self.date}  {here['cpu']}, {here['cores']} cores, load at the start {here['load']}, "
            f"Canopy {self.versions['canopy']}, Python {self.versions['python']}",
            style="dim", highlight=False, markup=False,
        )  # fmt: skip

    def write(self, file: Path) -> None:
        """Writes JSON. Raises OSError."""
        record = {
            "benchmark": self.name,
            "date": self.date,
            "machine": self.machine,
            "versions": self.versions,
            "settings": dict(self.settings),
            "tables": {table.title: table.as_records() for table in self.tables},
            "facts": self.facts,
            "notes": self.notes,
        }
        file.write_text(json.dumps(record, indent=1) + "\n")

    def finish(self, file: Path | None) -> None:
        """Prints, and writes if a file was asked for."""
        self.show()
        if file is not None:
            self.write(file)


def progress() -> Progress:
    """A progress bar on standard error; it leaves nothing behind."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def say(line: str) -> None:
    """One line of progress."""
    Console(stderr=True).print(f"  {line}", highlight=False, markup=False)


def _drawn(table: Rows) -> Table:
    drawn = Table(title=table.title, title_justify="left", title_style="bold")
    for index, column in enumerate(table.columns):
        numbers = all(isinstance(row[index], int | float | None) for row in table.rows)
        drawn.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(_text(cell, table.digits) for cell in row))
    return drawn


def _text(cell: Cell, digits: int) -> str:
    if cell is None:
        return "-"
    return f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)
