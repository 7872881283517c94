"""Behind nginx and Caddy as docs/proxy has them: TLS on a port of its own, at the root and below a
path.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests import proxies
from tests.e2e.browser import WAIT_MS, Chat, echoes, ends, log_in, watched, words
from tests.instance import (
    LAUNCHER,
    WAIT_SECONDS,
    Instance,
    environment,
    finish,
    free_port,
    running,
    start,
)
from tests.proxies import NAME, Certificate

pytestmark = pytest.mark.timeout(300)
WORDS, DELAY = 20, 0.1
UPLOAD_BYTES = 3_000_000  # more than a request's body elsewhere, or a proxy's default
SCOPE = "navigator.serviceWorker.ready.then((worker) => new URL(worker.scope).pathname)"


@dataclass
class Place:
    """An instance that believes to be at this port and path of NAME."""

    instance: Instance
    certificate: Certificate
    port: int
    path: str

    @property
    def address(self) -> str:
        return f"https://{NAME}:{self.port}{self.path}"

    @contextmanager
    def visitor(self, **headers: str) -> Iterator[httpx.Client]:
        with httpx.Client(
            base_url=self.address,
            verify=self.certificate.context(),
            headers=headers,
            timeout=WAIT_SECONDS,
        ) as client:
            yield client

    def proxy(self, name: str) -> AbstractContextManager[None]:
        upstream = int(self.instance.record()["port"])
        start: Callable[..., AbstractContextManager[None]] = {
            "nginx": proxies.nginx,
            "nginx that takes the path off": partial(proxies.nginx, takes_off=True),
            "caddy": proxies.caddy,
        }[name]
        return start(self.certificate, self.port, upstream, self.path)


@pytest.fixture(scope="module", params=["", "/canopy"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("behind")
    certificate = Certificate(tmp_path_factory.mktemp("certificate"))
    port = free_port()
    env = {"CANOPY_URL": f"https://{NAME}:{port}{request.param}"}
    options = [
        "--tunnel",
        "--engine",
        "echo",
        "--nodes",
        "1",
        "--slots",
        "4",
        "--token-delay",
        str(DELAY),
    ]
    with running(home, *options, env=env) as instance:
        instance.add_people(reader=False)
        yield Place(instance, certificate, port, request.param)


@pytest.mark.parametrize("name", ["nginx", "nginx that takes the path off", "caddy"])
def test_the_service_works_behind(place: Place, name: str) -> None:
    link = place.instance.canopy("login").strip()
    assert link.startswith(f"{place.address}/login?token=")
    with place.proxy(name):
        with place.visitor(Origin=f"https://{NAME}:{place.port}") as person:
            _logs_in(person, link, place)
            _chats(person)
        with place.visitor(Authorization=f"Bearer {place.instance.key()}") as program:
            _streams_unbuffered(program)
            _uploads(program)
            assert program.get("/v1/models").status_code == 200
        _joins(place)


def _joins(place: Place) -> None:
    """A node on a machine that reaches nothing but the pages: the broker listens on loopback."""
    token = place.instance.canopy("node-token", "create", "--name", "far").strip()
    home = place.instance.home / "far"
    home.mkdir(exist_ok=True)
    env = {**environment(home), "SSL_CERT_FILE": str(place.certificate.file)}
    node = start([sys.executable, str(LAUNCHER), "join", token], env, subprocess.DEVNULL)
    try:
        _until_serves(place.instance, "far")
    finally:
        finish(node)
        place.instance.canopy("node-token", "revoke", "far")


def _until_serves(instance: Instance, name: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        tree = json.loads(instance.canopy("tree", "--json"))
        if any((node["name"], node["state"]) == (name, "idle") for node in tree["nodes"]):
            return
        assert time.monotonic() < deadline, tree
        time.sleep(0.5)


def _logs_in(person: httpx.Client, link: str, place: Place) -> None:
    token = parse_qs(urlsplit(link).query)["token"][0]
    answer = person.get("/login", params={"token": token})
    assert answer.status_code == 302, answer.text
    assert urlsplit(answer.headers["Location"]).path in (f"{place.path}/", f"{place.path}/welcome")
    cookie = answer.headers["Set-Cookie"]
    assert f"Path={place.path}/;" in cookie
    assert "Secure" in cookie
    assert answer.headers["Strict-Transport-Security"]
    assert person.get("/api/me").json()["user"] is not None
    csrf = "csrftoken" + place.path.replace("/", "_")
    person.headers["X-CSRFToken"] = person.cookies[csrf]


def _chats(person: httpx.Client) -> None:
    answer = person.post("/api/conversations", json={})
    assert answer.status_code == 201, answer.text
    # a form of Django's own, with CSRF from its field
    page = person.get("/admin/", follow_redirects=True)
    assert page.status_code == 200, page.text
    found = re.search(r'action="([^"]*/admin/logout/)"', page.text)
    assert found is not None
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert token is not None
    out = person.post("/admin/logout/", data={"csrfmiddlewaretoken": token[1]})
    assert out.status_code == 200, out.text


def _streams_unbuffered(program: httpx.Client) -> None:
    body = {
        "model": "echo",
        "stream": True,
        "max_tokens": WORDS,
        "messages": [{"role": "user", "content": words(WORDS)}],
    }
    arrived = []
    with program.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if '"content":"w' in line.replace(" ", ""):
                arrived.append(time.monotonic())
    assert len(arrived) >= WORDS // 2
    assert arrived[-1] - arrived[0] > DELAY * WORDS / 2  # not all of it at the end


def _uploads(program: httpx.Client) -> None:
    content = b'{"x": 1}\n' * (UPLOAD_BYTES // 9)
    files = {"file": ("lines.jsonl", content)}
    answer = program.post("/v1/files", files=files, data={"purpose": "batch"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["bytes"] == len(content)


def test_a_browser_behind_nginx(place: Place, chromium: Browser, tmp_path: Path) -> None:
    complaints: list[str] = []
    with (
        place.proxy("nginx"),
        chromium.new_context(base_url=f"{place.address}/", ignore_https_errors=True) as context,
    ):
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        watched(page, complaints.append)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"{place.address}/")
        log_in(page, "reader", f"{place.address}/")
        chat = Chat(page)
        answer = chat.ask("below the proxy")
        assert echoes(ends(answer), "below the proxy")
        assert urlsplit(page.url).path.startswith(f"{place.path}/c/")
        assert page.evaluate(SCOPE) == f"{place.path}/"
        page.reload()  # through the service worker, which keeps what it brings
        expect(chat.answers.first).to_contain_text("below the proxy")
        page.get_by_test_id("settings-link").click()
        expect(page.get_by_test_id("settings-back")).to_be_visible()
        assert urlsplit(page.url).path == f"{place.path}/settings"
        page.go_back()
        expect(chat.questions.first).to_contain_text("below the proxy")
        manifest = page.request.get(
            page.evaluate("document.querySelector('link[rel=manifest]').href")
        )
        start = httpx.URL(manifest.url).join(manifest.json()["start_url"])
        assert start.path == f"{place.path}/"
        outside = [url for url in requests if not urlsplit(url).path.startswith(f"{place.path}/")]
        assert outside == []
        context.set_offline(True)
        page.goto(page.url)
        expect(chat.questions.first).to_contain_text("below the proxy")
        context.set_offline(False)
    assert [text for text in complaints if "ERR_INTERNET_DISCONNECTED" not in text] == []
