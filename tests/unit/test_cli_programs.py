"""What `canopy node` takes from the instance that runs here, and when it takes nothing."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import lock
from cli.commands.node import tree_to_join
from cli.errors import CliError
from cli.home import Home

HERE = "amqp://node:x@127.0.0.1:5000/%2F"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A folder with an instance that is ready."""
    monkeypatch.delenv("CANOPY_AMQP_URL", raising=False)
    home = Home(tmp_path)
    with lock.hold(home):
        home.instance_file.write_text(json.dumps({"amqp": {"node": HERE}, "engine": "echo"}))
        yield home


def test_the_tree_that_runs_here_is_joined(home: Home) -> None:
    url, record = tree_to_join(home)
    assert url == HERE
    assert record is not None
    assert record["engine"] == "echo"


def test_what_runs_here_says_nothing_of_a_tree_elsewhere(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANOPY_AMQP_URL", "amqp://far/")
    assert tree_to_join(home) == ("amqp://far/", None)
    monkeypatch.setenv("CANOPY_AMQP_URL", HERE)
    assert tree_to_join(home)[1] is not None


def test_without_a_tree_to_join_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CANOPY_AMQP_URL", raising=False)
    with pytest.raises(CliError, match="Canopy is not running here"):
        tree_to_join(Home(tmp_path / "nothing"))
