"""What commands see on a machine where nodes of another one's tree run, and no management API."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import local_nodes, registry
from cli.__main__ import command_line
from cli.home import Home
from cli.rabbitmq import Broker
from tests.realbroker import NodeProcess, echo_node, root
from topology.version import VERSION


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The second machine's folder; its commands know of no broker."""
    for name in ("CANOPY_AMQP_URL", "CANOPY_MANAGEMENT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CANOPY_HOME", str(tmp_path))
    home = Home(tmp_path)
    home.make()
    return home


@contextmanager
def joined(broker: Broker, home: Home) -> Iterator[NodeProcess]:
    """A node there, as `node` starts it, below the root of the first machine."""
    options = ("--parent", "root", "--model", "echo", "--engine", "echo", "--wait", "20")
    with root(broker), NodeProcess(broker, "far", *options, env=home.node_variables("far")) as node:
        yield node


def canopy(*words: str) -> Result:
    """A command in this process."""
    result = CliRunner().invoke(command_line(), words)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result


def test_its_own_nodes_are_seen_and_drained_without_the_broker(broker: Broker, home: Home) -> None:
    with joined(broker, home) as node:
        (listed,) = json.loads(canopy("status", "--json").output)["nodes"]
        assert (listed["name"], listed["connected"], listed["pid"]) == (
            "far",
            True,
            node.process.pid,
        )
        assert f"log: {home.logs / 'far.log'}" in canopy("status").output
        assert canopy("tree").output.startswith("far  idle  0/8 running  echo (echo)")
        shown = json.loads(canopy("log", "far", "--json").output)
        assert (shown["parent"], shown["version"]) == ("root", VERSION)
        assert shown["log_file"] == str(home.logs / "far.log")
        figures = json.loads(canopy("top", "--once", "--json").output)
        assert [each["name"] for each in figures["nodes"]] == ["far"]
        assert "far drains" in canopy("drain", "far", "--wait", "5").output
        assert json.loads(canopy("log", "far", "--json").output)["state"] == "drained"
        canopy("resume", "far")
        assert json.loads(canopy("log", "far", "--json").output)["state"] == "idle"
        canopy("remove", "far")
        assert node.process.wait(60) == 4
    assert local_nodes.running(home) == []
    assert " ready " in (home.logs / "far.log").read_text()
    assert (home.logs / "far.log").stat().st_mode & 0o777 == 0o600


def test_a_node_without_its_broker_still_answers(home: Home) -> None:
    lonely = NodeProcess(
        Broker({"node": "amqp://a:b@127.0.0.1:1/"}, {}),
        *("far", "--parent", "root", "--model", "echo", "--engine", "echo", "--wait", "60"),
        env=home.node_variables("far"),
    )
    refused = lonely.said("not registered")
    try:
        assert refused.wait(60)
        assert [each.connected for each in local_nodes.running(home)] == [False]
        assert "not connected to its broker" in canopy("status").output
    finally:
        lonely.process.kill()
        lonely.wait_exit(10)
    assert local_nodes.running(home) == [], "a dead one's socket is nobody's"
    assert [entry.name for entry in home.nodes.iterdir()] == ["far.sock"]


def test_the_tree_is_read_from_the_broker_alone(
    broker: Broker, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANOPY_AMQP_URL", broker.amqp["admin"])
    with root(broker), echo_node(broker, "n1", "root"), echo_node(broker, "n2", "n1"):
        tree = registry.read_tree()
        assert [(node["name"], node["parent"]) for node in tree["nodes"]] == [
            ("root", None),
            ("n1", "root"),
            ("n2", "n1"),
        ]
        assert {node["version"] for node in tree["nodes"]} == {VERSION}


def test_a_user_without_the_right_is_told_so(
    broker: Broker, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANOPY_AMQP_URL", broker.amqp["node"])
    result = CliRunner().invoke(command_line(), ["tree"])
    assert "may not read the tree" in str(result.exception)
