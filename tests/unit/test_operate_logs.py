"""Logs for operators: what a line says, the file's end, growth and rotation, who may read them."""

import argparse
import asyncio
import json
from pathlib import Path

import httpx
import pytest

from api.operate.logs import commands, files
from api.operate.logs.endpoints import _events, folder
from api.operate.logs.files import Tail, Tails, log_files
from api.operate.logs.lines import Filter, LineParser
from api.operate.logs.schemas import LogQuery
from cli.logfile import LogFile
from tests.unit.api_site import FakeClient

API = "timestamp='2026-11-29T14:28:24.644313Z' level='warning' event='late' request_id='r1'"
NODE = "2026-11-29 14:28:41 [\x1b[32minfo     \x1b[0m] ready    node=n1 request_id=r2"
BROKER = "2026-11-29 14:28:46.945150+00:00 [error] <0.636.0> Stopping"
JSON = (
    '{"request_id": "r1", "note": "level=\'error\'", "event": "x", "level": "debug", '
    '"timestamp": "2026-11-29T14:28:47Z"}'
)


@pytest.mark.parametrize(
    ("raw", "level", "second"),
    [(API, "warning", 24), (NODE, "info", 41), (BROKER, "error", 46), (JSON, "debug", 47)],
)
def test_a_line_says_when_and_how_serious(
    raw: str, level: str, second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = LineParser("n1").parse(raw)
    assert line.at is not None
    assert (line.level, int(line.at) % 60) == (level, second)
    assert "\x1b" not in line.text


@pytest.mark.parametrize(
    ("said", "level"),
    [
        ("accepting AMQP connection <0.1.0> (127.0.0.1:1 -> 127.0.0.1:2)", "debug"),
        (
            "closing AMQP connection <0.1.0> (127.0.0.1:1 -> 127.0.0.1:2 - api, user: 'api')",
            "debug",
        ),
        ("connection <0.1.0> (127.0.0.1:1): user 'api' authenticated and granted access", "debug"),
        ("Server startup complete; 4 plugins started.", "info"),
    ],
)
def test_the_broker_talks_of_each_connection_without_being_asked(said: str, level: str) -> None:
    line = LineParser("broker").parse(f"2026-11-29 15:56:56.5+00:00 [info] <0.1423.0> {said}")
    assert line.level == level


def test_a_traceback_belongs_to_the_line_before_it() -> None:
    parser = LineParser("api")
    first = parser.parse(BROKER)
    trace = parser.parse("  File 'x.py', line 1\x07")
    assert (trace.level, trace.at, trace.text) == ("error", first.at, "  File 'x.py', line 1 ")
    assert LineParser("epmd").parse("no time at all").at is None
    assert LineParser("x").parse("9999-99-99 99:99:99 [info] odd").at is None


def test_lines_are_filtered_by_level_and_request() -> None:
    lines = [LineParser("x").parse(raw) for raw in (API, NODE, BROKER, JSON)]

    def passing(chosen: Filter) -> list[str]:
        return [line.level for line in lines if chosen.passes(line)]

    assert passing(Filter()) == ["warning", "info", "error", "debug"]
    assert passing(Filter("warning")) == ["warning", "error"]
    assert passing(Filter(request="r1")) == ["warning", "debug"]
    assert passing(Filter("error", "r1")) == []


def texts(tail: Tail) -> list[str]:
    return [line.text for line in tail.grown(Filter())]


def test_a_log_is_followed_through_its_rotation(tmp_path: Path) -> None:
    path = tmp_path / "n1.log"
    writer = LogFile(path, limit=60)
    writer.write(b"one\ntwo\n")
    with Tail("n1", path) as tail:
        assert [line.text for line in tail.last(Filter(), 1)] == ["two"]
        writer.write(b"thr")
        assert texts(tail) == []
        writer.write(b"ee\n" + b"x" * 45 + b"\n")
        writer.write(b"in the new file\n")
        assert texts(tail) == ["three", "x" * 45]
        assert texts(tail) == []
        assert texts(tail) == ["in the new file"]
        path.unlink()
        assert texts(tail) == []
        writer.close()
        writer.write(b"again\n")
        assert texts(tail) == ["again"]
    writer.close()


def test_only_the_end_of_a_large_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "END_BYTES_OF_MANY", 100)
    path = tmp_path / "api.log"
    path.write_bytes(b"".join(b"line %04d\n" % number for number in range(5000)))
    with Tails(tmp_path) as tails:
        lines = tails.last(Filter(), 1000)
    assert [line.text for line in lines] == [f"line {number:04}" for number in range(4991, 5000)]


def test_what_is_no_log_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "secret.log").symlink_to("/etc/passwd")
    (tmp_path / "folder.log").mkdir()
    (tmp_path / "n1.log.1").write_text("old\n")
    (tmp_path / "na me.log").write_text("odd\n")
    (tmp_path / "n1.log").write_text("new\n")
    assert [file.process for file in log_files(tmp_path)] == ["n1"]
    assert log_files(tmp_path / "missing") == []


@pytest.fixture
def logs(fake: FakeClient) -> Path:
    """The application's logs: those of a node and of the API."""
    place = folder()
    place.mkdir(exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    (place / "api.log").write_text(f"{API}\n")
    (place / "n1.log").write_text(f"{BROKER}\n{JSON}\n")
    return place


async def test_logs_are_for_staff(
    logs: Path, staff: httpx.AsyncClient, member: httpx.AsyncClient
) -> None:
    shown = (await staff.get("/api/operate/logs")).json()
    assert [process["name"] for process in shown["processes"]] == ["api", "n1"]
    assert [line["text"] for line in shown["lines"]] == [API, BROKER, JSON]
    of_one = await staff.get("/api/operate/logs?process=n1&request=r1")
    assert [line["text"] for line in of_one.json()["lines"]] == [JSON]
    for name in ("nobody", "../../etc/passwd", "api.log"):
        assert (await staff.get("/api/operate/logs", params={"process": name})).status_code == 404
    for path in ("", "/stream"):
        assert (await member.get(f"/api/operate/logs{path}")).status_code == 403


async def test_new_lines_come_as_they_are_written(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.operate.logs.endpoints.LOOK_SECONDS", 0.01)
    events = _events(LogQuery(level="warning"))

    async def lines() -> list[str]:
        async with asyncio.timeout(30):
            body = (await anext(events)).decode()
        return [line["text"] for line in json.loads(body.partition("data: ")[2])]

    assert await lines() == [API, BROKER]
    with (logs / "n2.log").open("a") as fresh:
        fresh.write(f"{JSON}\n{API}\n")
    assert await lines() == [API]
    await events.aclose()


def test_the_command_prints_lines_of_all_or_of_one(
    logs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANOPY_HOME", str(logs.parent))

    def printed(*words: str) -> tuple[int, list[str]]:
        parser = argparse.ArgumentParser()
        commands.add_arguments(parser)
        status = commands.run(parser.parse_args(words))
        output = capsys.readouterr()
        return status, (output.out + output.err).splitlines()

    _, lines = printed("--level", "debug")
    assert [line.split()[1] for line in lines] == ["api", "n1", "n1"]
    assert printed("--process", "n1", "--lines", "1", "--level", "debug") == (0, [JSON])
    assert printed("--process", "n1") == (0, [BROKER])
    _, [line] = printed("--request", "r1", "--level", "warning", "--json")
    assert json.loads(line)["text"] == API
    status, [problem] = printed("--process", "nobody")
    assert (status, problem) == (1, "there is no log of 'nobody' here; there are: api, n1")
