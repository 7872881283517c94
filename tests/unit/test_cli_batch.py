"""`./canopy batch`: an API of a few lines is all that it sees."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

from cli.commands import batch
from cli.errors import CliError, UnreachableError, UsageError

BATCH: dict[str, Any] = {
    "id": "batch_1",
    "status": "completed",
    "endpoint": "/v1/chat/completions",
    "request_counts": {"total": 3, "completed": 2, "failed": 1},
    "output_file_id": "file-1",
    "error_file_id": None,
    "errors": None,
}

Answer = Callable[[httpx.Request], httpx.Response]
Serve = Callable[[Answer], list[httpx.Request]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Answers the command's requests; returns those that came."""

    def serve(answer: Answer) -> list[httpx.Request]:
        seen: list[httpx.Request] = []

        def handle(request: httpx.Request) -> httpx.Response:
            request.read()
            seen.append(request)
            return answer(request)

        client = functools.partial(httpx.Client, transport=httpx.MockTransport(handle))
        monkeypatch.setattr(batch.httpx, "Client", client)
        return seen

    return serve


def run(command: click.Command, *words: str) -> Any:
    """The command's exit status."""
    options = ["--api", "http://api", "--key", "secret"]
    return command.main([*words, *options], standalone_mode=False)


def test_submit_uploads_makes_and_waits(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(batch, "POLL_SECONDS", 0)
    states = iter(["validating", "in_progress", "completed"])

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/files":
            return httpx.Response(200, json={"id": "file-0"})
        return httpx.Response(200, json={**BATCH, "status": next(states)})

    seen = serve(answer)
    file = tmp_path / "lines.jsonl"
    file.write_text("{}\n")
    assert run(batch.submit, str(file), "--wait") == 0
    assert [each.method for each in seen] == ["POST", "POST", "GET", "GET"]
    assert b'name="purpose"' in seen[0].content
    assert json.loads(seen[1].content)["input_file_id"] == "file-0"
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert "2 of 3 answered, 1 failed" in capsys.readouterr().out


def test_a_batch_that_fails_says_where(serve: Serve, tmp_path: Path, capsys: Any) -> None:
    errors = {"data": [{"line": 2, "message": "not a request"}]}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={**BATCH, "status": "failed", "errors": errors})

    serve(answer)
    file = tmp_path / "lines.jsonl"
    file.write_text("{}\n")
    assert run(batch.submit, str(file), "--wait") == 1
    assert "line 2: not a request" in capsys.readouterr().out


def test_results_are_printed_as_they_are(serve: Serve, capfdbinary: Any) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/content"):
            return httpx.Response(200, content=b'{"custom_id": "1"}\n')
        return httpx.Response(200, json=BATCH)

    serve(answer)
    run(batch.results, "batch_1")
    assert capfdbinary.readouterr().out == b'{"custom_id": "1"}\n'
    run(batch.results, "batch_1", "--errors")
    assert capfdbinary.readouterr().out == b""


def test_list_and_cancel(serve: Serve, capsys: Any) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        listed = {"data": [BATCH]}
        return httpx.Response(200, json=listed if request.url.path == "/v1/batches" else BATCH)

    serve(answer)
    run(batch.list_batches)
    run(batch.cancel, "batch_1", "--json")
    line, document = capsys.readouterr().out.splitlines()
    assert line.startswith("batch_1  completed")
    assert json.loads(document) == BATCH


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (httpx.Response(404, json={"error": {"message": "no such batch"}}), "no such batch"),
        (httpx.Response(502, content=b"<html>"), "answered 502"),
    ],
    ids=["404", "502"],
)
def test_what_the_api_says_is_the_error(serve: Serve, response: httpx.Response, says: str) -> None:
    serve(lambda request: response)
    with pytest.raises(CliError, match=says):
        run(batch.show, "batch_1")


def test_no_api_and_no_key(serve: Serve) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    serve(answer)
    with pytest.raises(UnreachableError):
        run(batch.show, "batch_1")
    with pytest.raises(UsageError, match="CANOPY_KEY"):
        batch.show.main(["batch_1", "--api", "http://api"], standalone_mode=False)
