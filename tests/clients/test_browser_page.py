"""A page of another server, whose script asks the API with `fetch` (CORS)."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.clients.expected import QUESTION
from tests.clients.programs import Record
from tests.clients.registry import ECHO
from tests.e2e.browser import launched
from tests.instance import Instance

# What a page with a key of its visitor's does: an answer, a stream, a refusal it can read.
_ASK = """async ([base, key, question]) => {
  const headers = { Authorization: `Bearer ${key}`, "Content-Type": "application/json" };
  const body = { model: "echo", messages: [{ role: "user", content: question }] };
  const ask = (more, key) =>
    fetch(`${base}/v1/chat/completions`, {
      method: "POST",
      headers: key ? { ...headers, Authorization: `Bearer ${key}` } : headers,
      body: JSON.stringify({ ...body, ...more }),
    });
  const whole = await ask();
  const streamed = (await ask({ stream: true })).body.pipeThrough(new TextDecoderStream());
  const reader = streamed.getReader();
  let events = "";
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    events += piece.value;
  }
  const refused = await ask({}, "canopy_wrong_key");
  return {
    chat: (await whole.json()).choices[0].message.content,
    id: whole.headers.get("X-Request-Id"),
    events: events.trim().split("\\n\\n").length,
    last: events.trim().split("\\n\\n").at(-1),
    refused: [refused.status, (await refused.json()).error.code],
  };
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def elsewhere(chromium: Browser, tmp_path: Path) -> Iterator[Page]:
    """A page of a server on another port: another origin."""
    (tmp_path / "index.html").write_text("<!doctype html><title>Elsewhere</title>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        yield page
        page.close()
        server.shutdown()


def test_a_page_of_another_origin_asks_with_a_key(
    elsewhere: Page, service: Instance, key: str, chromium: Browser, record: Record
) -> None:
    said = elsewhere.evaluate(_ASK, [service.url, key, QUESTION])
    assert said["chat"] == QUESTION
    assert said["id"], "the request's id can be read"
    assert (said["events"] > len(QUESTION.split()), said["last"]) == (True, "data: [DONE]")
    assert said["refused"] == [401, "invalid_api_key"]
    name = "a browser's fetch from another origin"
    works = {"chat": "", "stream": "", "wrong_key": ""}
    record(name, f"Chromium {chromium.version.split('.')[0]}", ECHO, works)


def test_nothing_but_v1_is_open_to_it(elsewhere: Page, service: Instance, key: str) -> None:
    ask = """async ([base, key]) => {
      try {
        await fetch(`${base}/api/tree`, { headers: { Authorization: `Bearer ${key}` } });
        return "read";
      } catch (error) { return error.name; }
    }"""
    assert elsewhere.evaluate(ask, [service.url, key]) == "TypeError"
