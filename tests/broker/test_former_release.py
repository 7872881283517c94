"""Nodes and clients of this release and of the former one work together."""

import contextlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cli.rabbitmq import Broker
from tests.realbroker import REPOSITORY, NodeProcess

# the last commit before names in the code, though not on the wire, changed
FORMER = "67fa2d406cf75d6daee8b83f5e3c7c3f37cf7ee1"
SECONDS = 60
DRIVER = Path(__file__).with_name("release_driver.py")


def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, check=False)


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code of the former release."""
    archive = git("archive", FORMER, "broker", "topology", "worker")
    if archive.returncode:  # a shallow clone
        git("fetch", "--quiet", "--depth=1", "origin", FORMER)
        archive = git("archive", FORMER, "broker", "topology", "worker")
    if archive.returncode:
        pytest.fail(f"commit {FORMER} is not in this clone: git fetch --unshallow", pytrace=False)
    folder = tmp_path_factory.mktemp("former")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("old_nodes", [True, False], ids=["former nodes", "former client"])
def test_releases_work_together(broker: Broker, former: Path, old_nodes: bool) -> None:
    nodes, client = (former, REPOSITORY) if old_nodes else (REPOSITORY, former)
    fixed = ("--model", "echo", "--wait", "20")
    echo = (*fixed, "--engine", "echo", "--slots", "1", "--token-delay", "0.01")
    tree = [
        NodeProcess(broker, "root", *fixed, "--engine", "none", folder=nodes),
        NodeProcess(broker, "n1", *echo, "--parent", "root", folder=nodes),
        NodeProcess(broker, "n2", *echo, "--parent", "n1", folder=nodes),
    ]
    with contextlib.ExitStack() as stack:
        for node in tree:
            stack.push(node)
        for node in tree:
            node.wait_ready()
        driver = subprocess.run(
            [sys.executable, "-c", DRIVER.read_text(), broker.amqp["api"]],
            cwd=client,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert driver.returncode == 0, driver.stderr
    assert json.loads(driver.stdout.splitlines()[-1]) == {
        "answers": [f"request {number} of several" for number in range(6)],
        "nodes": ["n1", "n2"],
        "cancelled": "cancelled",
        "running": 0,
    }
