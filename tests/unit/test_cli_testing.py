"""How `./canopy test` runs a tier: in how many processes, in which order, with what around it."""

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli import testing
from tests import conftest as order
from tests.faults import conftest as faults
from tests.faults.table import Row
from tests.instance import START_SECONDS


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


class Programs:
    """Stands for pytest and the linters: what is called, and the statuses they give in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *statuses: int) -> None:
        self.calls: list[list[str]] = []
        self._statuses = iter(statuses)
        monkeypatch.setattr(testing, "_run", self._run)

    def _run(self, command: Sequence[str], *_: object) -> tuple[int, float]:
        self.calls.append(list(command[1:]))
        return next(self._statuses), 0.5


def failures(monkeypatch: pytest.MonkeyPatch, folder: Path, tier: str, *tests: str) -> None:
    """What pytest remembers of its last run."""
    remembered = folder / tier / "v" / "cache" / "lastfailed"
    remembered.parent.mkdir(parents=True)
    remembered.write_text(json.dumps(dict.fromkeys(tests, True)))
    monkeypatch.setattr(testing, "_CACHES", folder)


def test_tests_with_limits_of_time_run_alone_after_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs = Programs(monkeypatch, 0, 0)
    [result] = testing._run_tiers(["faults"])
    assert result.status == 0
    together, alone = programs.calls
    assert "not alone" in together
    assert "--numprocesses" in together
    assert "--numprocesses" not in alone
    assert "tests/faults/test_hostile_requests.py" in alone
    assert "tests/faults/test_cancel.py" not in alone


def test_a_tier_without_such_tests_is_not_collected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs(monkeypatch, 0)
    monkeypatch.setattr(testing, "_files_with_tests_alone", lambda _: [])
    [result] = testing._run_tiers(["unit"])
    assert (result.status, result.cpu_seconds) == (0, 0.5)
    assert len(programs.calls) == 1


def test_a_tier_that_collects_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    Programs(monkeypatch, testing._NO_TESTS_COLLECTED)
    monkeypatch.setattr(testing, "_files_with_tests_alone", lambda _: [])
    [result] = testing._run_tiers(["unit"])
    assert result.status == testing._NO_TESTS_COLLECTED


def test_a_failure_is_tried_again_alone_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failures(monkeypatch, tmp_path, "broker", "tests/broker/test_a.py::test_b")
    programs = Programs(monkeypatch, 1, 0)
    [result] = testing._run_tiers(["broker"])
    assert programs.calls[-1][0] == "tests/broker/test_a.py::test_b"
    assert result.status == 0
    assert "unsteady: tests/broker/test_a.py::test_b" in str(result)


@pytest.mark.parametrize(("count", "again"), [(3, 1), (11, 0)])
def test_a_failure_that_stays_or_has_much_company_fails_the_tier(
    count: int, again: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failures(
        monkeypatch,
        tmp_path,
        "broker",
        *(f"tests/broker/test_a.py::test_{n}" for n in range(count)),
    )
    programs = Programs(monkeypatch, 1, *[1] * again)
    [result] = testing._run_tiers(["broker"])
    assert len(programs.calls) == 1 + again
    assert (result.status, result.unsteady) == (1, ())


def test_of_several_tiers_two_run_at_a_time_and_each_says_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    both = threading.Barrier(2)

    def program(command: Sequence[str], *rest: Any) -> tuple[int, float]:
        log = rest[-1]
        tier = Path(command[1]).name
        if log is None:
            return 0, 0.0  # what runs alone
        if tier in ("unit", "faults"):
            both.wait(5.0)
        log.write_text(f"tests of {tier}\n")
        return int(tier == "faults"), 2.0

    monkeypatch.setattr(testing, "_run", program)
    monkeypatch.setattr(testing, "_LOGS", tmp_path)
    monkeypatch.setattr(testing, "_CACHES", tmp_path)
    results = testing._run_tiers(["unit", "faults", "broker"])
    assert [(result.tier, result.status) for result in results] == [
        ("unit", 0),
        ("faults", 1),
        ("broker", 0),
    ]
    shown = capfd.readouterr().out
    for tier in ("unit", "faults", "broker"):
        assert f"== {tier}\ntests of {tier}\n" in shown


def test_a_command_says_what_it_and_its_children_computed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    shell = "python3 -S -c 'import time\nwhile time.process_time() < 0.1: pass'; echo said; exit 3"
    status, cpu_seconds = testing._run(["/bin/sh", "-c", shell], log=log)
    assert status == 3
    assert cpu_seconds >= 0.1
    assert log.read_text() == "before\nsaid\n"


def test_no_test_of_pages_ends_before_its_instance_could_have_started() -> None:
    """The first test of a process starts the instance of all, within the test's own time."""
    for file in sorted((testing.REPOSITORY / "tests" / "e2e").glob("test_*.py")):
        for limit in re.findall(r"mark\.timeout\((\d+)\)", file.read_text()):
            assert int(limit) > START_SECONDS, file.name


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
