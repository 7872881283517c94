"""How `./canopy test` runs a tier: in how many processes, in which order, with what around it."""

import json
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


class Pytest:
    """Stands for pytest: what it is told, and the exit statuses that it gives in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *statuses: int) -> None:
        self.calls: list[list[str]] = []
        self._statuses = iter(statuses)
        monkeypatch.setattr(testing, "_run", self._run)

    def _run(self, command: list[str]) -> int:
        self.calls.append(command[1:])
        return next(self._statuses)


def failures(monkeypatch: pytest.MonkeyPatch, folder: Path, *tests: str) -> None:
    """What pytest remembers of its last run."""
    remembered = folder / "lastfailed"
    remembered.write_text(json.dumps(dict.fromkeys(tests, True)))
    monkeypatch.setattr(testing, "_LAST_FAILED", remembered)


def test_tests_with_limits_of_time_run_alone_after_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest_ = Pytest(monkeypatch, 0, testing._NO_TESTS_COLLECTED)
    assert testing._run_tests("faults") == 0
    together, alone = pytest_.calls
    assert "not alone" in together
    assert "--numprocesses" in together
    assert alone == ["tests/faults", "-m", "alone"]


def test_a_failure_is_tried_again_alone_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failures(monkeypatch, tmp_path, "tests/faults/test_a.py::test_b", "tests/e2e/test_c.py::test_d")
    pytest_ = Pytest(monkeypatch, 1, testing._NO_TESTS_COLLECTED, 0)
    result = testing._run_tier("faults")
    assert pytest_.calls[-1] == ["tests/faults/test_a.py::test_b"]
    assert result.status == 0
    assert "unsteady: tests/faults/test_a.py::test_b" in str(result)


@pytest.mark.parametrize(("count", "again"), [(3, 1), (11, 0)])
def test_a_failure_that_stays_or_has_much_company_fails_the_tier(
    count: int, again: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failures(monkeypatch, tmp_path, *(f"tests/unit/test_a.py::test_{n}" for n in range(count)))
    pytest_ = Pytest(monkeypatch, 1, testing._NO_TESTS_COLLECTED, *[1] * again)
    result = testing._run_tier("unit")
    assert len(pytest_.calls) == 2 + again
    assert (result.status, result.unsteady) == (1, ())


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
