"""One instance with the echo engine for the whole tier, who asks it, and the table of clients."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.home import REPOSITORY
from tests.clients import matrix
from tests.clients.programs import Record
from tests.clients.registry import CHAT_MODEL, EMBEDDER
from tests.instance import MODEL_SECONDS, Instance, running
from tests.realbroker import NodeProcess, root

LOAD_SECONDS = 120.0  # of a model, on a machine that has other things to do
_ANSWER_TOKENS = 96  # of a request that names no limit: a small model may not know when to end


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Puts what the clients' tests found into the table of docs/clients.md."""
    results = []
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "teardown":  # it has those of set-up and test, too
                results += [
                    value for name, value in report.user_properties if name == matrix.PROPERTY
                ]
    if results:
        matrix.update(results)


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """root -> (n1, n2), fifty slots a node, a hundred words a second each."""
    options = ["--engine", "echo", "--nodes", "2", "--slots", "50", "--token-delay", "0.01"]
    with running(tmp_path_factory.mktemp("service"), *options) as instance:
        yield instance


@pytest.fixture(scope="package")
def key(service: Instance) -> str:
    """An API key of the administrator."""
    return service.key()


@pytest.fixture(scope="package")
def staff(service: Instance) -> Iterator[httpx.Client]:
    """The administrator's session without a browser, logged in by the link that `up` printed."""
    with service.session(service.token) as client:
        yield client


@pytest.fixture(scope="package")
def program(service: Instance, key: str) -> Iterator[httpx.Client]:
    """A program with an API key."""
    with service.program(key) as client:
        yield client


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Record:
    """Tells the table of a client, its version and a model which checks worked."""

    def tell(client: str, version: str, model: str, problems: Mapping[str, str]) -> None:
        record_property(matrix.PROPERTY, [client, version, model, matrix.cell(problems)])

    return tell


@pytest.fixture(scope="package")
def models(service: Instance, staff: httpx.Client) -> Iterator[None]:
    """A tree with the packaged chat model beside echo's, and one that embeds."""
    folder = model_folder()
    computes = ["--engine", "transformers", "--device", "cpu", "--model-path", str(folder)]
    with ExitStack() as trees:
        _tree(trees, service, CHAT_MODEL, *computes, "--slots", "4")
        _tree(trees, service, EMBEDDER, "--engine", "echo", "--task", "embed")
        # What an operator would set for so small a model; clients that name values get theirs.
        limits = {"model": CHAT_MODEL, "max_tokens": _ANSWER_TOKENS, "temperature": 0.0}
        answer = staff.put("/api/operate/models/settings", json=limits)
        assert answer.is_success, answer.text
        yield


def _tree(trees: ExitStack, service: Instance, model: str, *options: str) -> None:
    """A root and a node for the model. One thread: two would wait for each other, busily."""
    name = f"{model}-root"
    trees.enter_context(root(service.broker, name, model))
    node = ["--parent", name, "--model", model, *options]
    threads = {"CANOPY_THREADS": "1"}
    process = NodeProcess(service.broker, f"{model}-1", *node, env=threads)
    trees.push(process)
    process.wait_ready(LOAD_SECONDS)


def model_folder() -> Path:
    """The packaged model, converted if this is the first time."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.models", "prepare", CHAT_MODEL],
        cwd=REPOSITORY,
        env={**os.environ, "CANOPY_HOME": str(REPOSITORY / "var")},
        capture_output=True,
        text=True,
        timeout=MODEL_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Path(done.stdout.splitlines()[-1])
