"""The API on PostgreSQL: its own tests once more, and an instance of two API processes."""

import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from cli.home import REPOSITORY
from tests.instance import Instance, running
from tests.postgresql import private_postgresql

pytestmark = pytest.mark.timeout(600)

# Of each room that keeps something in the database; the others differ in nothing.
ROOMS = (
    "accounts",
    "background",
    "batches",
    "branches",
    "files",
    "history",
    "idempotency",
    "keys",
    "lists",
    "plans",
    "quota",
    "responses",
    "search",
    "takeover",
    "transfer",
    "usage",
)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with private_postgresql() as url:
        yield url


def test_the_tests_of_the_api_pass(database: str) -> None:
    files = [f"tests/unit/test_api_{room}.py" for room in ROOMS]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not sqlite",
        *files,
    ]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "TEST_DATABASE_URL": database},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]


@pytest.fixture(scope="module")
def instance(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """Two API processes on a database of its own."""
    url = f"{database.rpartition('/')[0]}/template1"
    options = ["--engine", "echo", "--nodes", "1", "--api-processes", "2"]
    env = {"DATABASE_URL": url}
    home = tmp_path_factory.mktemp("on-postgresql")
    with running(home, *options, env=env) as instance:
        yield instance


def test_two_processes_share_conversations(instance: Instance) -> None:
    with instance.session(instance.token) as staff:
        home = f"/api/conversations/{staff.post('/api/conversations', json={}).json()['id']}"
        turn = staff.post(f"{home}/messages", json={"content": "the heron stands still"}).json()
        staff.get(f"{home}/messages/{turn['assistant_message']['id']}/stream")  # to its end
        for _ in range(6):  # whichever process each connection meets
            with httpx.Client(base_url=instance.url, cookies=staff.cookies) as connection:
                _, answer = connection.get(home).json()["messages"]
                assert answer["content"] == "the heron stands still"
        found = staff.get("/api/conversations/search", params={"q": "heron"}).json()
    assert found["results"]
