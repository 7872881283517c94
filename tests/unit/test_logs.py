"""CANOPY_LOG_FORMAT=json: one object a line in every process, with the job and the trace."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from broker import logs, tracing
from broker.logs import LogSettings
from cli.console import Console
from cli.home import REPOSITORY
from cli.plan import is_ready_line
from worker import settings
from worker.errors import BadSettings

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def former_configuration() -> Iterator[None]:
    """Puts structlog's configuration back at the end."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_a_node_writes_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure_node(logs.read({"CANOPY_LOG_FORMAT": "json"}), "n1")
    log = structlog.get_logger()
    token = tracing.current.set(PARENT)
    log.info("ready", request_id="r1", who=object)
    tracing.current.reset(token)
    try:
        raise ValueError("a secret: " + "x" * 3)
    except ValueError:
        log.exception("job failed", request_id="r2")
    log.debug("too much")
    lines = capsys.readouterr().err.splitlines()
    first, second = map(json.loads, lines)
    assert first["trace_id"] == PARENT[3:35]
    assert (first["process"], first["level"], first["event"]) == ("n1", "info", "ready")
    assert list(first)[:4] == ["timestamp", "level", "event", "process"]
    assert first["request_id"] == "r1"
    assert first["timestamp"].endswith("Z")
    assert "trace_id" not in second
    assert second["exception"].startswith("Traceback")
    assert is_ready_line(lines[0])


def test_as_text_it_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure_node(logs.read({"CANOPY_LOG_LEVEL": "debug"}), "n1")
    structlog.get_logger().debug("job runs", request_id="r1")
    text = capsys.readouterr().err
    assert "job runs" in text
    assert "request_id=r1" in text


@pytest.mark.parametrize(
    "environ", [{"CANOPY_LOG_FORMAT": "xml"}, {"CANOPY_LOG_LEVEL": "everything"}]
)
def test_what_cannot_be_used_is_refused(environ: dict[str, str]) -> None:
    [name] = environ
    with pytest.raises(ValueError, match=name):
        logs.read(environ)
    options = settings.parse(["--name", "n1", "--model", "m"])
    with pytest.raises(BadSettings, match=name):
        settings.read(options, {"CANOPY_AMQP_URL": "amqp://x", **environ})


def test_the_settings_have_defaults() -> None:
    assert logs.read({}) == LogSettings(False, logging.INFO)
    assert logs.read({"CANOPY_LOG_FORMAT": ""}) == LogSettings(False, logging.INFO)


def test_the_launchers_progress_is_json_and_its_result_is_not(
    capfd: pytest.CaptureFixture[str],
) -> None:
    console = Console(as_json=True)
    console.say("n1 is back")
    console.result("Canopy is ready: http://127.0.0.1:1")
    console.close(5.0)
    output = capfd.readouterr()
    said = json.loads(output.err)
    assert (said["event"], said["process"], said["level"]) == ("n1 is back", "launcher", "info")
    assert output.out == "Canopy is ready: http://127.0.0.1:1\n"


def test_nodes_and_api_start_without_what_colours_tracebacks() -> None:
    """structlog would import it wherever transformers is installed: a third of a node's imports."""
    program = (
        "import sys, api.__main__, worker.__main__\n"
        "print({'rich', 'pygments', 'structlog'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'structlog'}\n"


def test_a_node_that_nobody_watches_writes_a_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logs, "LOG_BYTES", 2000)
    file = tmp_path / "n1.log"
    logs.configure_node(logs.read({}), "n1", file)
    structlog.get_logger().info("\x1b[32mready\x1b[0m")
    print("a traceback's line", file=sys.stderr)
    assert file.read_text().splitlines()[-1] == "a traceback's line"
    assert "ready" in file.read_text()
    assert "\x1b" not in file.read_text()
    assert "a traceback's line" in stream.getvalue()
    assert file.stat().st_mode & 0o777 == 0o600
    for _ in range(200):
        print("x" * 100, file=sys.stderr)
    sys.stderr.close()
    sizes = [each.stat().st_size for each in tmp_path.iterdir()]
    assert len(sizes) == 3
    assert max(sizes) <= 2000


def test_a_log_file_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure_node(logs.read({}), "n1", tmp_path / "missing" / "n1.log")
    print("still here", file=sys.stderr)
    assert stream.getvalue() == "still here\n"
