"""deploy/: what can be checked without a container: releases agree, files parse, scripts do."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import click
import jsonschema
import pytest
import yaml

from cli.__main__ import command_line
from cli.home import REPOSITORY
from cli.lazy import LazyCommand
from topology.version import VERSION

DEPLOY = REPOSITORY / "deploy"
DEFAULT = re.compile(r"\$\{\w+:-(.*?)\}")  # of a variable in a compose file
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
CHART = DEPLOY / "helm" / "canopy"
ROOMS = {"api", "broker", "cli", "topology", "worker"}


def compose() -> dict[str, dict]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def run(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# ---- the release


def test_all_files_name_the_same_release() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    package = json.loads((REPOSITORY / "frontend" / "package.json").read_text())
    assert chart["version"] == chart["appVersion"] == package["version"] == VERSION
    assert f":-canopy:{VERSION}}}" in (DEPLOY / "compose.yaml").read_text()
    headings = re.findall(r"^## .*$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert VERSION in headings[0]  # of the next release, or of the latest


def test_the_release_is_printed_before_anything_is_installed() -> None:
    printed = run(sys.executable, "-S", REPOSITORY / "canopy", "--version")
    assert (printed.stdout, printed.returncode) == (f"canopy {VERSION}\n", 0)
    result = run(sys.executable, "-m", "cli", "--version", PYTHONPATH=str(REPOSITORY))
    assert result.stdout == printed.stdout


# ---- the image


def test_hadolint_finds_nothing() -> None:
    checked = run(
        shutil.which("hadolint", path=Path(sys.executable).parent) or "hadolint",
        DEPLOY / "Dockerfile",
    )
    assert (checked.stdout, checked.returncode) == ("", 0)


def test_the_image_holds_every_room_and_no_state() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert lines[1] == "*"  # nothing but:
    included = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert ROOMS | {"canopy", "frontend", "requirements.txt"} <= included
    assert all((REPOSITORY / name).exists() for name in included)
    assert not included & {"var", "deploy", "tests", "bench", ".venv", ".git"}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The scripts of the image beside a program that shows what it is called with."""
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("helm", ".env"))
    canopy = tmp_path / "canopy"
    canopy.write_text('#!/bin/sh\necho "$@"\nenv | grep -E "^(CANOPY|DATABASE)" | sort\n')
    canopy.chmod(0o755)
    return tmp_path


def test_secrets_come_from_files(image: Path) -> None:
    secret = image / "amqp-url"
    secret.write_text("amqp://u:a$b`c`'d@h/%2F\n")
    link = image / "elsewhere"
    link.symlink_to(image / "deploy" / "entrypoint")
    started = run(link, "up", "--nodes", "0", CANOPY_AMQP_URL_FILE=str(secret), DATABASE_URL="x")
    assert started.stdout.splitlines() == [
        "up --nodes 0", "CANOPY_AMQP_URL=amqp://u:a$b`c`'d@h/%2F", "DATABASE_URL=x",
    ]  # fmt: skip


def test_the_secrets_that_may_be_files_are_described() -> None:
    script = (DEPLOY / "entrypoint").read_text()
    names = re.search(r"for name in (.*?); do", script, re.DOTALL)
    assert names is not None
    known = set(names[1].replace("\\", " ").split())
    assert "CANOPY_TARGET_DATABASE_URL" in known
    manual = (REPOSITORY / "docs" / "operations.md").read_text()
    sentence = manual.partition("may be given as a file:")[2].partition("The image's health")[0]
    assert known == {name.removesuffix("_FILE") for name in re.findall(r"`([A-Z_]+)[`=]", sentence)}


@pytest.mark.parametrize("role", ["node", "join"])
def test_a_node_is_to_say_how_it_is(image: Path, role: str) -> None:
    started = run(image / "deploy" / "entrypoint", role, "n1", CANOPY_AMQP_URL="amqp://h")
    assert "CANOPY_STATUS_FILE=/tmp/canopy-status" in started.stdout.splitlines()


@pytest.mark.parametrize("role", ["up", "node", "agent"])
def test_without_a_broker_it_says_what_to_set(image: Path, role: str) -> None:
    refused = run(image / "deploy" / "entrypoint", role)
    assert refused.returncode == 1
    assert "set CANOPY_AMQP_URL" in refused.stderr
    assert run(image / "deploy" / "entrypoint", "--version").returncode == 0


def test_a_missing_secret_ends_the_start(image: Path) -> None:
    refused = run(image / "deploy" / "entrypoint", "up", CANOPY_AMQP_URL_FILE="/nonexistent")
    assert refused.returncode != 0
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("status", "age", "ready", "alive"),
    [("idle", 0, True, True), ("starting", 0, False, True), ("idle", 180, True, False)],
    ids=["serves", "loads", "hangs"],
)
def test_a_nodes_probes_read_its_status(
    tmp_path: Path, status: str, age: int, ready: bool, alive: bool
) -> None:
    file = tmp_path / "status"
    file.write_text(f"{status}\n")
    os.utime(file, (time.time() - age,) * 2)
    probe = DEPLOY / "healthy"
    assert (run(probe, "alive", CANOPY_STATUS_FILE=str(file)).returncode == 0) == alive
    assert (run(probe, CANOPY_STATUS_FILE=str(file)).returncode == 0) == (ready and alive)


@pytest.fixture
def server() -> Iterator[int]:
    """An API that lives and is not ready; its port."""

    class Waiting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Waiting) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield http.server_port
        http.shutdown()


def test_a_servers_probes_ask_its_pages(tmp_path: Path, server: int) -> None:
    env = {"CANOPY_STATUS_FILE": str(tmp_path / "none"), "CANOPY_PORT": str(server)}
    assert run(DEPLOY / "healthy", "alive", **env).returncode == 0
    assert run(DEPLOY / "healthy", **env).returncode != 0


# ---- compose, Helm, systemd


def assert_known(words: list[str]) -> None:
    """The command line takes these words."""
    command = command_line().commands[words[0]]
    assert isinstance(command, LazyCommand)
    with click.Context(command) as parent:
        command.make_context(words[0], words[1:], parent=parent)


def test_compose_starts_what_the_command_line_knows() -> None:
    for name in ("server", "n1", "n2"):
        words = [DEFAULT.sub(r"\1", word) for word in compose()["services"][name]["command"]]
        assert_known(words)


def test_compose_waits_for_health_and_has_no_secret() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for dependency in service.get("depends_on", {}).values():
            assert dependency == {"condition": "service_healthy"}
        for variable, value in service["environment"].items():
            if "PASS" in variable or "://" in value:
                assert "_PASSWORD" in value, f"{name}: {variable} has a password of its own"
    assert set(services) == {"rabbitmq", "postgres", "server", "n1", "n2"}


def test_passwords_are_made_once_and_private(image: Path) -> None:
    file = image / "deploy" / ".env"
    assert run(image / "deploy" / "make-env").returncode == 0
    made = file.read_text()
    assert re.fullmatch(r"RABBITMQ_PASSWORD=\w{48}\nPOSTGRES_PASSWORD=\w{48}\n", made)
    assert file.stat().st_mode & 0o777 == 0o600
    assert run(image / "deploy" / "make-env").returncode == 1
    assert file.read_text() == made
    ignored = (REPOSITORY / ".gitignore").read_text().splitlines()
    assert "/deploy/.env" in ignored


def test_the_charts_values_keep_their_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.validate(values, json.loads((CHART / "values.schema.json").read_text()))


def test_the_templates_read_values_that_there_are() -> None:
    """Helm takes a name that is not there for one that is not set."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    used: set[str] = set()
    for template in (CHART / "templates").iterdir():
        used.update(re.findall(r"\.Values\.([\w.]+)", template.read_text()))
    assert used
    for name in used:
        found: object = values
        for part in name.split("."):
            assert isinstance(found, dict), name
            assert part in found, name
            found = found[part]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_units(unit: Path, tmp_path: Path) -> None:
    """With the paths of this folder, as it looks for the programs."""
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/canopy", str(REPOSITORY)))
    checked = run("systemd-analyze", "verify", copy)
    assert (checked.stderr, checked.returncode) == ("", 0)
    text = unit.read_text()
    assert "Wants=network-online.target" in text
    assert re.search(r"^After=.*network-online\.target", text, re.MULTILINE)
