"""The benchmarks' own environments: made once, and again when the pins change."""

import subprocess
from pathlib import Path

import pytest

from bench import extras
from bench.errors import NotStarted

HELD = "pip"  # every environment has it already, so no index is asked


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own."""
    monkeypatch.setenv("CANOPY_HOME", str(tmp_path))
    return tmp_path


def test_is_made_once_and_again_when_the_pins_change(home: Path) -> None:
    extras.environment("probe", HELD)
    python = extras.python_of("probe")
    prefix = subprocess.run(
        [python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
    )
    assert prefix.stdout.strip() == str(home / "bench" / "probe")
    marker = home / "bench" / "probe" / "marker"
    marker.touch()
    extras.environment("probe", HELD)
    assert marker.exists()
    extras.environment("probe", HELD, f"{HELD}>1")
    assert not marker.exists()


def test_a_failure_is_one_line_and_what_it_left_is_not_believed(home: Path) -> None:
    for _ in range(2):
        with pytest.raises(NotStarted, match=r"no-such-folder") as caught:
            extras.environment("probe", str(home / "no-such-folder"))
        assert "\n" not in str(caught.value)
