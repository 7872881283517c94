"""What was found, as tables."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bench.gpu.system import Cell
from bench.report import Rows

Cells = Mapping[int, Cell]  # by number of requests at once for each node


def rates(ours: Cells, alone: Mapping[str, Any]) -> Rows:
    """The system beside its engine."""
    rows = []
    for size, cell in ours.items():
        rate = alone.get(str(size), {}).get("rate")
        system = cell.reading
        rows.append((size, system.rate, rate, system.rate / rate if rate else None, system.failed))
    return Rows("tok/s", ("at once", "system", "engine", "system / engine", "failed"), rows)


def scaling(one: Cells, many: Cells, gpus: int) -> Rows:
    """Several GPUs beside one."""
    rows = []
    for size, cell in many.items():
        alone, together = one[size].reading, cell.reading
        ratio = together.rate / alone.rate if alone.rate else None
        rows.append((size, alone.rate, together.rate, ratio, alone.failed + together.failed))
    columns = ("at once a GPU", "1 GPU", f"{gpus} GPUs", f"{gpus} / 1", "failed")
    return Rows(f"tok/s of the system, {gpus} GPUs beside one", columns, rows)


def delays(systems: Mapping[str, Cells], alone: Mapping[str, Any]) -> Rows:
    """A row a number of requests and contender; `systems` by their names."""
    rows = []
    for size in dict.fromkeys(size for cells in systems.values() for size in cells):
        readings = {who: asdict(cells[size].reading) for who, cells in systems.items()}
        engine = {"engine": alone.get(str(size), {})} if alone else {}
        for who, each in {**readings, **engine}.items():
            spreads = [each.get("ttft") or {}, each.get("gap") or {}]
            rows.append(
                (
                    size,
                    who,
                    *(spread.get(point) for spread in spreads for point in ("p50", "p99", "max")),
                )
            )
    columns = ("TTFT p50", "TTFT p99", "TTFT max", "gap p50", "gap p99", "gap max")
    return Rows("delays, ms", ("at once", "who", *columns), rows)


def processors(found: Mapping[int, Cells]) -> Rows:
    """A row a process, a column a number of nodes and of requests for each."""
    columns = {
        f"{nodes} x {size}": cell.cores
        for nodes, cells in found.items()
        for size, cell in cells.items()
    }
    names = dict.fromkeys(
        name for cores in reversed(columns.values()) for name in cores
    )  # most nodes first
    rows = [(name, *(cores.get(name) for cores in columns.values())) for name in names]
    return Rows(
        "processor time, cores in use (nodes x requests at once for each)",
        ("process", *columns),
        rows,
    )
