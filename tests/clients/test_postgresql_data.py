"""The move from SQLite to PostgreSQL, and backups across the two; every table has rows."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.home import REPOSITORY
from tests.instance import environment
from tests.postgresql import private_postgresql

pytestmark = pytest.mark.timeout(300)
TARGET = "CANOPY_TARGET_DATABASE_URL"
_CREATE = "import psycopg, sys; psycopg.connect(sys.argv[1], autocommit=True).execute(sys.argv[2])"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with private_postgresql() as url:
        yield url


@pytest.fixture
def database(server: str, request: pytest.FixtureRequest) -> str:
    """An empty database."""
    name = f"d{abs(hash(request.node.name)) % 10**9}"
    _done([sys.executable, "-c", _CREATE, server, f"CREATE DATABASE {name}"], {**os.environ})
    return f"{server.rpartition('/')[0]}/{name}"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CANOPY_HOME with rows in every table of its SQLite file."""
    home = tmp_path_factory.mktemp("filled")
    _canopy(home, "user", "list")
    _module(home, "tests.rows", "fill")
    return home


def _done(
    command: list[str], env: dict[str, str], status: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    return done


def _canopy(home: Path, *words: str, status: int = 0, **env: str) -> str:
    command = [sys.executable, str(REPOSITORY / "canopy"), *words]
    done = _done(command, {**environment(home), **env}, status)
    return done.stderr if status else done.stdout


def _module(home: Path, *words: str, **env: str) -> str:
    return _done([sys.executable, "-m", *words], {**environment(home), **env}).stdout


def _dump(home: Path, database: str = "") -> list[object]:
    """Every row, and the last keys: JSON in the same order, whatever the database made of it."""
    return [
        json.loads(line)
        for line in _module(home, "tests.rows", "dump", DATABASE_URL=database).splitlines()
    ]


def test_every_row_moves(filled: Path, database: str) -> None:
    before = (filled / "db.sqlite3").read_bytes()
    rows = json.loads(_canopy(filled, "migrate-db", "--to", database, "--json"))["rows"]
    assert all(rows.values()), [name for name, number in rows.items() if not number]
    assert _dump(filled, database) == _dump(filled)
    assert (filled / "db.sqlite3").read_bytes() == before
    # the next keys are new ones, and the search index has what was copied
    assert "new" in _canopy(filled, "user", "create", "new", "--json", DATABASE_URL=database)
    refused = _canopy(filled, "migrate-db", status=1, **{TARGET: database})
    assert "not empty" in refused
    assert len(refused.splitlines()) == 1


def test_a_row_that_cannot_move_leaves_the_target_empty(
    filled: Path, database: str, tmp_path: Path
) -> None:
    _module(tmp_path, "api", "migrate")
    _module(tmp_path, "tests.rows", "fill")
    statement = "UPDATE chat_message SET content = 'a' || char(0) || 'b' WHERE id = 2"
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()"
    )
    _done([sys.executable, "-c", program, str(tmp_path / "db.sqlite3"), statement], {**os.environ})
    refused = _canopy(tmp_path, "migrate-db", "--to", database, status=1)
    assert "chat_message" in refused
    assert "Traceback" not in refused
    _canopy(filled, "migrate-db", "--to", database)
    # nor does restoring it change anything
    bad, home = tmp_path / "bad.tar.gz", tmp_path / "home"
    _canopy(tmp_path, "backup", str(bad))
    _canopy(home, "restore", "--force", str(bad), status=1, DATABASE_URL=database)
    left = {path.name for path in home.iterdir()}
    assert "secret.key" in left
    assert not left & {"restoring", "files"}, left
    assert _dump(filled, database) == _dump(filled)


def test_an_unusable_target_is_said_in_a_line(filled: Path, server: str) -> None:
    for target in (
        "mysql://x/y",
        f"{server.rpartition('/')[0]}/nothing",
        "postgresql://127.0.0.1:1/x",
    ):
        refused = _canopy(filled, "migrate-db", "--to", target, status=1)
        assert len(refused.strip().splitlines()) == 1, refused
        assert "Traceback" not in refused


_HOLD = """
import sys
import django
django.setup()
from django.db import connection
connection.ensure_connection()
print("connected", flush=True)
sys.stdin.read()
"""


def test_no_restore_replaces_a_database_that_another_instance_uses(
    filled: Path, database: str, tmp_path: Path
) -> None:
    file, home, other = tmp_path / "first.tar.gz", tmp_path / "home", tmp_path / "other"
    _canopy(filled, "backup", str(file))
    _canopy(home, "restore", str(file), DATABASE_URL=database)
    variables = {"DATABASE_URL": database, "DJANGO_SETTINGS_MODULE": "api.settings"}
    instance = subprocess.Popen(
        [sys.executable, "-c", _HOLD],
        cwd=REPOSITORY,
        env={**environment(other), **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with instance:
        assert instance.stdout is not None
        assert instance.stdout.readline() == b"connected\n"
        refused = _canopy(home, "restore", "--force", str(file), status=1, DATABASE_URL=database)
        assert "another instance uses this database now (from 127.0.0.1): stop it" in refused
        assert len(refused.strip().splitlines()) == 1, refused
        instance.communicate(timeout=60)
    _canopy(home, "restore", "--force", str(file), DATABASE_URL=database)
    assert _dump(home, database) == _dump(filled)


def test_backups_fit_both_databases(filled: Path, database: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first.tar.gz", tmp_path / "second.tar.gz"
    home = tmp_path / "home"
    _canopy(filled, "backup", str(first))
    # from the file into PostgreSQL, twice, and from there into a file again
    _canopy(home, "restore", str(first), DATABASE_URL=database)
    assert _dump(home, database) == _dump(filled)
    assert "--force" in _canopy(home, "restore", str(first), status=1, DATABASE_URL=database)
    _canopy(home, "user", "create", "new", DATABASE_URL=database)
    _canopy(home, "restore", "--force", str(first), DATABASE_URL=database)
    assert _dump(home, database) == _dump(filled)
    _canopy(home, "backup", str(second), DATABASE_URL=database)
    other = tmp_path / "other"
    _canopy(other, "restore", str(second))
    assert _dump(other) == _dump(filled)
