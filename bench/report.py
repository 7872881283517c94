"""The result of a benchmark: tables for people, JSON for machines."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from cli.home import REPOSITORY

Row = Mapping[str, object]  # column -> cell: a text, a number, or None for a dash
_PACKAGES = ("pika", "django", "uvicorn", "httptools", "msgspec", "transformers", "torch")


@dataclass(frozen=True)
class Table:
    """One table: the keys of its first row are the columns. Floats show `digits` decimals."""

    title: str
    rows: Sequence[Row]
    digits: int = 2

    def text(self) -> str:
        """Markdown with aligned columns: to be read as it is, or pasted into a document."""
        columns = [self._column(name) for name in self.rows[0]]
        lines = [f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True)]
        return "\n".join((self.title, "", "\n".join(lines), ""))

    def _column(self, name: str) -> list[str]:
        """Its header, its rule and its cells, all of one width; numbers are on the right."""
        values = [row.get(name) for row in self.rows]
        cells = [name, *(_cell(value, self.digits) for value in values)]
        width = max(3, *map(len, cells))
        justify, rule = str.rjust, "-" * (width - 1) + ":"
        if any(isinstance(value, str) for value in values):
            justify, rule = str.ljust, "-" * width
        lines = [justify(cell, width) for cell in cells]
        return [lines[0], rule, *lines[1:]]


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
    for package in importlib.metadata.distributions():
        if package.name.lower() in _PACKAGES:
            numbers[package.name.lower()] = package.version
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

    def text(self) -> str:
        parts = [table.text() for table in self.tables if table.rows]
        parts += [f"- {note}" for note in self.notes]
        where = "{cpu}, {cores} cores, load at the start {load}".format(**self.machine)
        software = "Canopy {canopy}, Python {python}".format(**self.versions)
        parts.append(f"{self.date}  {where}, {software}")
        return "\n".join(parts)

    def write(self, file: Path) -> None:
        """Writes the JSON. Raises OSError."""
        tables = {table.title: table.rows for table in self.tables}
        record = {"benchmark": self.name, **vars(self), "tables": tables}
        file.write_text(json.dumps(record, indent=1) + "\n")

    def finish(self, file: Path | None) -> None:
        """Prints, and writes to `file` if there is one."""
        print(self.text())
        if file is not None:
            self.write(file)


class Progress:
    """Counts the steps of a run, each a line on standard error when it begins."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._begun = 0

    def step(self, name: str) -> None:
        self._begun += 1
        say(f"{self._begun} of {self._total}: {name}")


def say(line: str) -> None:
    """One line of progress on standard error."""
    print(f"  {line}", file=sys.stderr, flush=True)


def _cell(value: object, digits: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return str(value)


def _cpu_model() -> str:
    """As Linux says; empty where it does not."""
    text = Path("/proc/cpuinfo").read_text()
    return text.partition("model name")[2].partition("\n")[0].strip("\t :")


def _commit() -> str:
    """The commit, with a `+` if the working tree differs from it; "unknown" outside a clone."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
