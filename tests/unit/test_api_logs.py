"""What the API process writes to its log, and how much of it an outsider can cause."""

import io
import json
import logging
from collections.abc import Iterator

import httpx
import pytest
import structlog

from api.server import logs
from broker.logs import LogSettings
from tests.unit.api_site import FakeClient


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """The log as it is configured in production, kept in memory."""
    kept = io.StringIO()
    monkeypatch.setattr("sys.stderr", kept)
    # The tests' own client: the API has none.
    monkeypatch.setattr(logging.getLogger("httpx"), "disabled", True)
    root, handlers, level, raising = (
        logging.root,
        logging.root.handlers[:],
        logging.root.level,
        logging.raiseExceptions,
    )
    before = structlog.get_config()
    logs.configure()
    yield kept
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising
    structlog.configure(**before)


def record(name: str, message: object, line: int = 1) -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "file.py", line, message, (), None)


def test_a_kind_of_line_is_limited_and_says_so() -> None:
    clock = Clock()
    limit = logs.RateLimit(3, 60.0, clock)
    passed = [limit.filter(record("a", f"host {number}")) for number in range(10)]
    assert passed == [True] * 3 + [False] * 7
    assert limit.filter(record("a", "host", line=2))
    assert limit.filter(record("b", "host"))
    clock.now = 60.0
    next_one = record("a", "host")
    assert limit.filter(next_one)
    assert "7 more of these were left out" in next_one.getMessage()


def test_our_events_are_kinds_whatever_their_fields() -> None:
    limit = logs.RateLimit(2, 60.0, Clock())
    events = [{"event": "a view failed", "path": f"/{number}"} for number in range(5)]
    assert [limit.filter(record("canopy", event)) for event in events] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert events[1]["note"] == "further ones are left out for 60 s"
    assert limit.filter(record("canopy", {"event": "another"}))


@pytest.mark.parametrize(
    "request_of",
    [
        lambda web, n: web.get("/", headers={"Host": f"evil{n}.example" + "x" * 3000}),
        lambda web, n: web.get("/v1/models", headers={"Host": f"evil{n}.example"}),
        lambda web, n: web.get("/", headers={"Host": f"evil {n}"}),
        lambda web, n: web.get(
            "/api/conversations", headers={"Cookie": f"sessionid={n}; canopy_session=\x01{n}"}
        ),
        lambda web, n: web.get(
            "/admin/", headers={"Cookie": f"canopy_session={n}:bad:bad; messages={n}"}
        ),
        lambda web, n: web.post(
            "/admin/login/",
            content=b"nonsense",
            headers={"Content-Type": f"multipart/form-data; boundary={n}"},
        ),
        lambda web, n: web.post("/admin/login/", data={f"field{k}": "x" for k in range(1100)}),
        lambda web, n: web.post("/login", data={"token": f"\x00{n}"}),
        lambda web, n: web.post("/v1/chat/completions", content=b"\xff{"),
        lambda web, n: web.get(f"/%ff{n}"),
        lambda web, n: web.get(f"/nothing/{n}"),
        lambda web, n: web.get("/login", params={"token": f"x{n}"}),
    ],
    ids=[
        "long host",
        "foreign host",
        "bad host",
        "cookie",
        "signed cookie",
        "multipart",
        "many fields",
        "NUL",
        "not UTF-8",
        "path",
        "404",
        "token",
    ],
)
async def test_an_outsider_causes_few_short_lines(
    fake: FakeClient, web: httpx.AsyncClient, written: io.StringIO, request_of: object
) -> None:
    for number in range(100):
        answer = await request_of(web, number)  # type: ignore[operator]
        assert answer.status_code < 500
    lines = written.getvalue().splitlines()
    assert len(lines) <= logs.LINES
    assert not any("Traceback" in line for line in lines)
    assert all(len(line) < 600 for line in lines)


def test_a_closed_standard_error_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, written: io.StringIO
) -> None:
    written.close()
    structlog.get_logger("canopy.api").warning("nobody reads this")


def test_as_json_each_record_is_an_object(
    written: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(LogSettings(as_json=True, level=logging.INFO), "api-2")
    structlog.get_logger("canopy.api").warning("ended", request_id="r1")
    structlog.get_logger("canopy.api").debug("not written")
    logging.getLogger("a.library").warning("it says %s", "this")
    ours, theirs = map(json.loads, capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["request_id"], ours["process"]) == ("ended", "r1", "api-2")
    assert (theirs["event"], theirs["level"]) == ("it says this", "warning")
