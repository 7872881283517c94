"""How `./canopy test` runs a tier: in how many processes, in which order, with what around it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli import testing
from tests import conftest as order
from tests.faults import conftest as faults
from tests.faults.table import Row


@pytest.mark.parametrize(("cores", "processes"), [(1, 3), (2, 6), (64, 12)])
def test_fault_tests_mostly_wait_so_they_get_three_processes_per_core(
    cores: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert testing._processes("faults")[:2] == ["--numprocesses", str(processes)]


def test_an_instance_of_the_user_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_HOME", "/home/somebody")
    assert "CANOPY_HOME" not in testing._environment()


def test_bytecode_is_cached_even_where_none_may_lie_beside_the_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    assert "PYTHONPYCACHEPREFIX" not in testing._environment()
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    environment = testing._environment()
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert Path(environment["PYTHONPYCACHEPREFIX"]).is_relative_to(testing.REPOSITORY / "var")


def item(name: str, seconds: float | None = None) -> Any:
    """A collected test; `name` is its file's path below tests/."""
    marker = SimpleNamespace(args=(seconds,)) if seconds else None
    return SimpleNamespace(path=order.TESTS / name, get_closest_marker=lambda _: marker)


def test_the_longest_files_of_a_tier_start_first() -> None:
    items = [
        item("faults/a.py"),
        item("faults/b.py"),
        item("faults/b.py", 300),
        item("e2e/c.py", 90),
        item("e2e/d.py", 240),
        item("faults/e.py", 240),
    ]
    config: Any = SimpleNamespace(getini=lambda _: "180")
    order.pytest_collection_modifyitems(config, items)
    names = [each.path.stem for each in items]
    assert names == ["b", "b", "e", "a", "d", "c"]


def test_a_long_test_that_is_alone_in_its_file_gets_a_short_file_along() -> None:
    files = {Path("chaos"): 1, Path("hostile"): 9, Path("nodes"): 15, Path("pure"): 7}
    assert [file.name for file in order.with_company(files, 2)] == [
        "chaos",
        "hostile",
        "pure",
        "nodes",
    ]
    assert order.with_company(files, 8) == list(files)


def test_rows_of_the_fault_table_come_from_the_reports_of_every_process() -> None:
    """Each phase of a test repeats the properties of those before it."""
    rows = [Row("kill -9", "leaf", 40, 40, 0, 0, 0, (0.5, 1.0)), Row("cut", "root", 8, 8, 0, 0, 0)]
    nodes = [SimpleNamespace(user_properties=[]) for _ in rows]
    for node, row in zip(nodes, rows, strict=True):
        record = faults.record.__wrapped__(SimpleNamespace(node=node))
        record(row)
    phases = ("call", "teardown")
    reports = [
        SimpleNamespace(when=phase, user_properties=node.user_properties)
        for node in nodes
        for phase in phases
    ]
    reporter = SimpleNamespace(stats={"passed": reports, "warnings": [SimpleNamespace()]})
    assert faults.recorded(reporter, faults.ROW, Row) == rows
