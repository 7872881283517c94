"""The order of the files, shared by several processes (pytest-xdist), and a failure's evidence."""

import gc
from collections import Counter, defaultdict
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
_LEFT_WHEN_NEXT = 2  # tests of a process when xdist gives it the next file

# modules whose assertions are to show their values, as those of test files do
pytest.register_assert_rewrite(
    "tests.faults", "tests.instance", "tests.realbroker", "tests.session_contract"
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Without looking for garbage: what is read here stays, and there is more and more of it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the files of a tier in the order of their time limits, the longest first.

    So no process is left alone with a long file in the end. Within a file the order stays.
    """
    default = float(config.getini("timeout"))
    limits: defaultdict[Path, float] = defaultdict(float)
    tiers: dict[Path, int] = {}
    for item in items:
        limits[item.path] = max(limits[item.path], _limit(item, default))
        tiers.setdefault(_tier(item), len(tiers))
    items.sort(key=lambda item: (tiers[_tier(item)], -limits[item.path]))
    processes = getattr(config, "workerinput", {}).get("workercount", 0)
    if processes and len(tiers) == 1:
        files = with_company(Counter(item.path for item in items), processes)
        items.sort(key=lambda item: files.index(item.path))


def with_company(tests: Mapping[Path, int], processes: int) -> list[Path]:
    """The files (with their numbers of tests) in the order in which xdist is to give them out.

    It gives every process a file, and at once one more to each whose file has two tests or fewer: a
    long test that is alone in its file must not get another long file with it, but a short one.
    """
    files = list(tests)
    first, rest = files[:processes], files[processes:]
    lonely = sum(tests[file] <= _LEFT_WHEN_NEXT for file in first)
    short = list(reversed(rest))[:lonely]
    return [*first, *short, *rest[: len(rest) - len(short)]]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows what the instances logged with a test that failed beside them."""
    report = yield
    if report.failed:
        from tests.instance import last_lines  # rewritten by now, and not needed by every tier

        lines = last_lines()
        if lines:
            report.sections.append(("logs of the running instances", lines))
    return report


def _tier(item: pytest.Item) -> Path:
    """The folder below tests/ that the item is in."""
    return next(folder for folder in item.path.parents if folder.parent == TESTS)


def _limit(item: pytest.Item, default: float) -> float:
    """Seconds after which the test is ended."""
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker and marker.args else default
