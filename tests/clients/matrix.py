"""The table of clients in docs/clients.md, written by the tests that ran."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.home import REPOSITORY
from tests.clients.expected import kind_of

PAGE = REPOSITORY / "docs" / "clients.md"
PROPERTY = "client"  # of a test's report
COLUMNS = ("echo", "smollm2-135m-instruct")
_HEAD = f"| client | version | {' | '.join(COLUMNS)} |"
_RULE = "| --- " * (2 + len(COLUMNS)) + "|"
_ROW = re.compile(r"^\| (?P<client>[^|]+?) \| (?P<version>[^|]*?) \|(?P<cells>.*)\|$")


@dataclass(frozen=True)
class Row:
    """A client, its version, and for each model what worked (and what did not)."""

    client: str
    version: str
    cells: tuple[str, ...]

    def __str__(self) -> str:
        return f"| {self.client} | {self.version} | {' | '.join(self.cells)} |"


def cell(problems: Mapping[str, str]) -> str:
    """The checks of a client with one model, by provider; bold where there was a problem."""
    by_way: dict[str, list[str]] = {"": []}
    for check, why in problems.items():
        kind = kind_of(check)
        way = check.removesuffix(kind).rstrip("_")
        by_way.setdefault(way, []).append(f"**not {_words(kind)}**" if why else _words(kind))
    told = {way: ", ".join(checks) for way, checks in by_way.items() if checks}
    return "; ".join(f"{way}: {checks}" if way else checks for way, checks in told.items())


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def read(page: Path = PAGE) -> list[Row]:
    """The rows of the table as they are."""
    rows = []
    for line in page.read_text().splitlines():
        found = _ROW.match(line)
        if found and line not in {_HEAD, _RULE}:
            cells = tuple(text.strip() for text in found["cells"].split("|"))
            rows.append(Row(found["client"], found["version"], cells))
    return rows


def update(results: Iterable[tuple[str, str, str, str]], page: Path = PAGE) -> None:
    """Puts results (client, version, model, cell) into the table; other rows and text stay."""
    rows = {row.client: row for row in read(page)}
    for client, version, model, text in results:
        row = rows.get(client)
        known = row.cells if row and row.version == version else ("",) * len(COLUMNS)
        cells = list(known)
        cells[COLUMNS.index(model)] = text
        rows[client] = Row(client, version, tuple(cells))
    table = [_HEAD, _RULE, *(str(rows[client]) for client in sorted(rows, key=str.lower))]
    before, after = _around(page.read_text())
    text = "\n".join([before, *table, after])
    if text != page.read_text():
        page.write_text(text)


def _around(page: str) -> tuple[str, str]:
    """What stands before and after the table."""
    lines = page.split("\n")
    start = lines.index(_HEAD)
    end = next(at for at in range(start, len(lines)) if not lines[at].startswith("|"))
    return "\n".join(lines[:start]), "\n".join(lines[end:])
