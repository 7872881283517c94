"""Open WebUI before the API, as its pages ask it."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients import environments
from tests.clients.expected import QUESTION
from tests.clients.programs import Record, variables
from tests.clients.registry import CHAT_MODEL, ECHO
from tests.instance import Instance, finish, free_port, start

pytestmark = [pytest.mark.timeout(500), pytest.mark.usefixtures("models")]

START_SECONDS = 240.0


@pytest.fixture(scope="module")
def web_ui(
    service: Instance, key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """Its server, as its manual sets it up for an OpenAI API; one user, who needs no password."""
    home, port = tmp_path_factory.mktemp("open-webui"), free_port()
    env = variables(service, key, ECHO, home) | {
        "DATA_DIR": str(home / "data"),
        "OPENAI_API_BASE_URL": f"{service.url}/v1",
        "ENABLE_OLLAMA_API": "false",
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "of the tests",
        # nothing is fetched from hubs
        "OFFLINE_MODE": "true",
        "RAG_EMBEDDING_ENGINE": "openai",
    }
    program = str(environments.python("open-webui").with_name("open-webui"))
    with (home / "log").open("w") as log:
        command = [program, "serve", "--host", "127.0.0.1", "--port", str(port)]
        server = start(command, env, log)
    drain = threading.Thread(target=server.stdout.read, daemon=True) if server.stdout else None
    if drain:
        drain.start()
    try:
        wait_accepting(port, server, home / "log")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            anybody = {"email": "", "password": ""}
            token = client.post("/api/v1/auths/signin", json=anybody).json()["token"]
            client.headers["Authorization"] = f"Bearer {token}"
            yield client
    finally:
        finish(server)


def wait_accepting(port: int, server: subprocess.Popen[str], log: Path) -> None:
    """Returns when it listens: it offers nothing else to wait for."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            threading.Event().wait(0.5)
    pytest.fail(f"Open WebUI did not start:\n{log.read_text()[-3000:]}")


@pytest.mark.parametrize("model", [ECHO, CHAT_MODEL])
def test_open_webui(web_ui: httpx.Client, record: Record, model: str) -> None:
    listed = [entry["id"] for entry in web_ui.get("/api/models").json()["data"]]
    assert {ECHO, CHAT_MODEL} <= set(listed)
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    whole = web_ui.post("/api/chat/completions", json=body).json()
    texts = ["", whole["choices"][0]["message"]["content"]]
    with web_ui.stream("POST", "/api/chat/completions", json={**body, "stream": True}) as events:
        for line in events.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    texts[0] += choice["delta"].get("content") or ""
    assert all(texts)
    if model == ECHO:
        assert texts == [QUESTION] * 2
    version = environments.python_version("open-webui", "open-webui")
    record("Open WebUI", version, model, {"models": "", "chat": "", "stream": ""})
