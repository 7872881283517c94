"""The result of a benchmark: tables for people, JSON for machines."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from cli.home import REPOSITORY

JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Also write the result to this file.")
]
Row = Mapping[str, object]  # column -> cell: a text, a number, or None for a dash
_PACKAGES = ("pika", "django", "uvicorn", "httptools", "msgspec", "transformers", "torch")
_FILE_WIDTH = 140  # columns of a table that is printed into a file


@dataclass(frozen=True)
class Table:
    """One table: the keys of its first row are the columns. Floats show `digits` decimals."""

    title: str
    rows: Sequence[Row]
    digits: int = 2


def machine() -> dict[str, object]:
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "load": [round(average, 2) for average in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    numbers = {"canopy": _commit(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            numbers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            numbers[package] = "not installed"
    return numbers


@dataclass
class Report:
    """One run of one benchmark. `notes` say what its numbers do and do not mean."""

    name: str
    settings: Mapping[str, object]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)  # in the JSON alone
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: dict[str, object] = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)

    def show(self, console: Console | None = None) -> None:
        width = None if sys.stdout.isatty() else _FILE_WIDTH
        out = console or Console(width=width)
        for table in self.tables:
            if table.rows:
                out.print(_drawn(table))
        for note in self.notes:
            out.print(f"- {note}", highlight=False, markup=False)
        where = f"{self.machine['cpu']}, {self.machine['cores']} cores"
        load = f"load at the start {self.machine['load']}"
        software = f"Canopy {self.versions['canopy']}, Python {self.versions['python']}"
        footer = f"{self.date}  {where}, {load}, {software}"
        out.print(footer, style="dim", highlight=False, markup=False)

    def write(self, file: Path) -> None:
        """Writes the JSON. Raises OSError."""
        record = {
            "benchmark": self.name,
            "date": self.date,
            "machine": self.machine,
            "versions": self.versions,
            "settings": dict(self.settings),
            "tables": {table.title: [dict(row) for row in table.rows] for table in self.tables},
            "facts": self.facts,
            "notes": self.notes,
        }
        file.write_text(json.dumps(record, indent=1) + "\n")

    def finish(self, file: Path | None) -> None:
        """Prints, and writes to `file` if there is one."""
        self.show()
        if file is not None:
            self.write(file)


def choose(text: str, known: Collection[str], option: str) -> tuple[str, ...]:
    """The names in a comma-separated option. Raises typer.BadParameter for an unknown one."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            message = f"{name!r} is none of {', '.join(known)}"
            raise typer.BadParameter(message, param_hint=option)
    return names


def progress() -> Progress:
    """A progress bar on standard error that leaves nothing behind."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def say(line: str) -> None:
    """One line of progress on standard error."""
    print(f"  {line}", file=sys.stderr, flush=True)


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(title=table.title, title_justify="left", title_style="bold")
    for column in table.rows[0]:
        is_text = any(isinstance(row.get(column), str) for row in table.rows)
        drawn.add_column(column, justify="left" if is_text else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(_text(row.get(column), table.digits) for column in table.rows[0]))
    return drawn


def _text(cell: object, digits: int) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.{digits}f}"
    return str(cell)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _commit() -> str:
    """The commit, with a `+` if the working tree differs from it; "unknown" outside a clone."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+" if changes else commit


def _git(*words: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
