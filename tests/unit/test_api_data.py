"""Backup and restore with SQLite, and what an older version refuses."""

import io
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cli.errors import StateError
from cli.home import REPOSITORY, Home
from cli.state import check, record
from topology.version import STATE

CONTENT = "0123456789abcdef01234567"
pytestmark = pytest.mark.timeout(240)


class Place:
    """A CANOPY_HOME, and the API's programs there."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        clean = {name: each for name, each in os.environ.items() if "CANOPY_" not in name}
        env = {**clean, "CANOPY_HOME": str(self.home), "DATABASE_URL": ""}
        env |= {"PYTHONPATH": str(REPOSITORY), "DJANGO_SETTINGS_MODULE": "api.settings"}
        return subprocess.run(
            [sys.executable, "-m", *words], env=env, capture_output=True, text=True, check=False
        )

    def does(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refuses(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 1, (done.stdout, done.stderr)
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    def execute(self, statement: str) -> None:
        with closing(sqlite3.connect(self.home / "db.sqlite3")) as database:
            database.execute(statement)
            database.commit()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Rows in every table, an uploaded file, and state of the broker."""
    place = Place(tmp_path_factory.mktemp("filled"))
    place.does("api", "migrate")
    place.does("tests.rows", "fill")
    for name, text in {
        f"files/{CONTENT}": "uploaded",
        f"files/partial/{CONTENT}.7": "half a batch",
        f"files/incoming/{CONTENT}": "under way",
        "broker/credentials.json": "{}",
        "broker/node-tokens.json": "[1]",
        "broker/mnesia/data": "queues",
        "push.key": "key",
        "former.sqlite3": "left by migrate-db",
        "logs/api.log": "log",
        "models/m/config.json": "{}",
        "version.json": "{}",
    }.items():
        file = place.home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return place


@pytest.fixture(scope="module")
def backup(filled: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("backups") / "canopy.tar.gz"
    filled.does("api", "backup", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    return file


def test_a_backup_restores_everything(filled: Place, backup: Path, tmp_path: Path) -> None:
    other = Place(tmp_path)
    document = json.loads(other.does("api", "restore", "--json", str(backup)))
    assert document["files"] == 2
    assert other.does("tests.rows", "dump") == filled.does("tests.rows", "dump")
    for name in (f"files/{CONTENT}", f"files/partial/{CONTENT}.7", "push.key", "secret.key"):
        assert (tmp_path / name).read_text() == (filled.home / name).read_text(), name
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
    assert (tmp_path / "broker" / "node-tokens.json").read_text() == "[1]"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"broker", "db.sqlite3", "files", "push.key", "secret.key"}
    assert list((tmp_path / "files" / "incoming").iterdir()) == []


def test_nothing_is_overwritten_unasked(filled: Place, backup: Path, tmp_path: Path) -> None:
    assert "--force" in filled.refuses("api", "backup", str(backup))
    other = Place(tmp_path)
    other.does("api", "user", "create", "ada")
    before = (tmp_path / "secret.key").read_text()
    assert "--force" in other.refuses("api", "restore", str(backup))
    assert "ada" in other.does("api", "user", "list")
    other.does("api", "restore", "--force", str(backup))
    assert "ada" not in other.does("api", "user", "list")
    (aside,) = tmp_path.glob("replaced-*")
    assert (aside / "state" / "secret.key").read_text() == before
    with closing(sqlite3.connect(aside / "db.sqlite3")) as former:
        assert former.execute("SELECT username FROM accounts_user").fetchall() == [("ada",)]


@pytest.mark.parametrize("name", ["a #1", "50%25", "what?", "ä;b&c=d"])
def test_the_database_is_in_its_home_whatever_the_homes_name(tmp_path: Path, name: str) -> None:
    other = Place(tmp_path / name)
    other.home.mkdir()
    other.does("api", "migrate")
    assert (other.home / "db.sqlite3").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_backup_replaces_plain_files_alone(filled: Place, tmp_path: Path) -> None:
    """As root it would put itself in a device's place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "no plain file" in filled.refuses("api", "backup", str(pipe), "--force")
    assert pipe.is_fifo()
    assert "no folder" in filled.refuses("api", "backup", str(tmp_path / "none" / "x"))


def _changed(backup: Path, file: Path, change: Callable[[str, bytes], tuple[str, bytes]]) -> Path:
    """The backup with every member changed, and one more of an empty name at its end."""
    with tarfile.open(backup) as source, tarfile.open(file, "w:gz") as target:
        for member in source:
            stream = source.extractfile(member)
            name, content = change(member.name, stream.read() if stream else b"")
            info = tarfile.TarInfo(name)
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    return file


def _manifest(**changes: object) -> Callable[[str, bytes], tuple[str, bytes]]:
    def change(name: str, content: bytes) -> tuple[str, bytes]:
        if name != "manifest.json":
            return name, content
        return name, json.dumps({**json.loads(content), **changes}).encode()

    return change


def test_no_file_of_the_state_takes_the_databases_place(backup: Path, tmp_path: Path) -> None:
    """As backups had one, of instances that had moved to PostgreSQL."""
    home = tmp_path / "home"
    home.mkdir()
    file = _changed(
        backup,
        tmp_path / "changed.tar.gz",
        lambda name, content: (name.replace("state/push.key", "state/db.sqlite3"), content),
    )
    other = Place(home)
    other.does("api", "restore", str(file))
    assert other.does("api", "user", "list")


def test_a_backup_writes_to_a_file_of_its_own(filled: Place, tmp_path: Path) -> None:
    others = tmp_path / ".own.tar.gz.part"
    others.write_text("another's")
    others.chmod(0o666)
    filled.does("api", "backup", str(tmp_path / "own.tar.gz"))
    assert others.read_text() == "another's"
    assert (tmp_path / "own.tar.gz").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("newer", _manifest(state=STATE + 1)),
        ("does not know", _manifest(format=2)),
        ("chat.9999_later", _manifest(migrations=[["chat", "9999_later"]])),
        ("MB free", _manifest(bytes=10**17)),
        ("more in it", _manifest(bytes=10)),
        ("other rows", _manifest(rows={})),
        ("is no backup", _manifest(rows="many")),
        ("does not belong", lambda name, content: (name.replace("files/", "../"), content)),
        ("does not belong", lambda name, content: (name.replace("state/", "/etc/"), content)),
        ("is no backup", lambda name, content: (f"x{name}", content)),
        (
            "damaged",
            lambda name, content: (name, bytes(4096) if name.endswith("3") else content),
        ),
    ],
)
def test_a_bad_backup_changes_nothing(
    backup: Path,
    tmp_path: Path,
    reason: str,
    change: Callable[[str, bytes], tuple[str, bytes]],
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    bad = _changed(backup, tmp_path / "bad.tar.gz", change)
    assert reason in Place(home).refuses("api", "restore", str(bad))
    assert [path.name for path in home.iterdir()] == ["secret.key"]
    assert {path.name for path in tmp_path.iterdir()} == {"home", "bad.tar.gz"}


def test_a_torn_backup_is_refused(backup: Path, tmp_path: Path) -> None:
    home, torn = tmp_path / "home", tmp_path / "torn"
    home.mkdir()
    torn.write_bytes(backup.read_bytes()[: backup.stat().st_size // 2])
    assert "damaged" in Place(home).refuses("api", "restore", str(torn))
    (tmp_path / "text").write_text("not a backup\n")
    assert "is no backup" in Place(home).refuses("api", "restore", str(tmp_path / "text"))


def test_an_older_version_refuses_a_newer_database(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.does("api", "migrate")
    place.execute(
        "INSERT INTO django_migrations (app, name, applied) VALUES ('chat', '9999_later', '2030')"
    )
    for words in (["migrate"], ["serve", "--port", "1"], ["user", "list"], ["backup", "/x/y"]):
        assert "chat.9999_later" in place.refuses("api", *words)


def test_migrations_are_said_by_name(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert "created the database's tables" in place.run("api", "migrate").stderr
    assert place.run("api", "migrate").stderr == ""
    place.execute("DELETE FROM django_migrations WHERE app = 'feedback'")
    place.execute("DROP TABLE feedback_feedback")
    assert "lacks feedback.0001_initial" in place.refuses("api", "serve", "--port", "1")
    said = place.run("api", "migrate").stderr
    assert said == "migrating the database: feedback.0001_initial\n"


def test_a_newer_state_folder_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path)
    check(home)
    record(home)
    check(home)
    home.version_file.write_text(json.dumps({"state": STATE + 1, "version": "9.9"}))
    with pytest.raises(StateError, match=r"9\.9.*newer"):
        check(home)
    home.version_file.write_text("nonsense")
    check(home)
    (tmp_path / "restoring").touch()
    with pytest.raises(StateError, match="interrupted"):
        check(home)
