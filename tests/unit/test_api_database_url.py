"""Addresses of databases: what is refused, and in which words."""

from pathlib import Path

import dj_database_url
import pytest

from api import database_url
from api.data.databases import postgresql_config
from api.data.errors import DataError
from api.environment import BadEnvironment, read

WRONG = [
    "nonsense",
    "mysql://u:secret@host/name",
    "postgresql://u:secret@host:70000/name",
    "postgresql://u:sec/ret@host/name",
    "postgresql://u:secret@[::1/name",
    "postgresql://u:secret@host",
    "postgres:///",
]


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_address_is_named_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(BadEnvironment, match="DATABASE_URL must be like postgresql://") as refused:
        read({"CANOPY_HOME": str(tmp_path), "DATABASE_URL": url})
    assert "secret" not in str(refused.value)
    with pytest.raises(DataError, match="the target must be like postgresql://") as refused_target:
        postgresql_config(url)
    assert "secret" not in str(refused_target.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host/name",
        "postgres://u:p%2F%40@[::1]:5432/name?sslmode=require",
        "postgresql://%2Fvar%2Frun%2Fpostgresql/name",
        "sqlite://:memory:",
        "sqlite:////data/db.sqlite3",
    ],
)
def test_a_right_address_is_taken_as_it_is(url: str, tmp_path: Path) -> None:
    assert read({"CANOPY_HOME": str(tmp_path), "DATABASE_URL": url}).database_url == url


@pytest.mark.parametrize("name", ["plain", "a #1", "50%25", "what?", "ä;b&c=d", "[x"])
def test_a_files_address_leads_to_it(name: str) -> None:
    file = Path("/data") / name / "db.sqlite3"
    url = database_url.of_file(file)
    assert database_url.file_of(url) == file
    assert dj_database_url.parse(url)["NAME"] == str(file)
