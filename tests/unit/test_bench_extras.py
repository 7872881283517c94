"""The benchmarks' own environments: made once, made again when the pins change, and a failure told in one line."""

import subprocess
from pathlib import Path

import pytest

from bench import extras
from bench.instance import NotStarted

HELD = "pip"  # every environment has it already, so no index is asked


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own."""
    monkeypatch.setenv("CANOPY_HOME", str(tmp_path))
    return tmp_path


def test_is_made_once_and_again_when_the_pins_change(home: Path) -> None:
    python = extras.environment("probe", HELD)
    prefix = subprocess.run(
        [python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
    )
    assert prefix.stdout.strip() == str(home / "bench" / "probe")
    kept = home / "bench" / "probe" / "kept"
    kept.touch()
    assert extras.environment("probe", HELD) == python
    assert kept.exists()
    assert extras.environment("probe", HELD, f"{HELD}>1") == python
    assert not kept.exists()


def test_a_failure_is_one_line_and_what_it_left_is_not_believed(home: Path) -> None:
    for _ in range(2):
        with pytest.raises(NotStarted, match=r"no-such-folder") as caught:
            extras.environment("probe", str(home / "no-such-folder"))
        assert "\n" not in str(caught.value)


def test_the_order_of_the_pins_does_not_matter() -> None:
    assert extras.fingerprint(("a==1", "b==2")) == extras.fingerprint(("b==2", "a==1"))
    assert extras.fingerprint(("a==1",)) != extras.fingerprint(("a==2",))
