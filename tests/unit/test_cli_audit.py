"""What the command line records: with a database, and where there is none."""

from pathlib import Path

import pytest

from api.operate.audit.commands import has_database
from cli import audit
from cli.errors import StateError


def test_a_machine_without_a_database_says_so_and_acts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CANOPY_HOME", str(tmp_path))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    acted = []
    with audit.recorded("drain", "n1") as entry:
        acted.append("n1")
        assert not entry.runs
    assert acted == ["n1"]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "canopy: this is not recorded in the audit log: this machine has no database of Canopy"
    ]
    assert not list(tmp_path.glob("*.sqlite3"))


def test_an_action_that_fails_without_a_database_fails_as_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "BEGIN_SECONDS", 0.0)  # nor is a slow program waited for
    monkeypatch.setenv("CANOPY_HOME", str(tmp_path))
    with pytest.raises(StateError, match="no such letter"), audit.recorded("drop", "x"):
        raise StateError("no such letter")


def test_only_files_can_be_missing(tmp_path: Path) -> None:
    assert has_database("postgres://localhost/canopy")
    assert not has_database(f"sqlite:///{tmp_path / 'db.sqlite3'}")
    (tmp_path / "db.sqlite3").touch()
    assert has_database(f"sqlite:///{tmp_path / 'db.sqlite3'}")
