"""A running instance for tests: `./canopy up` as a child, its people, its keys, its tree."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from cli import ports
from cli.home import REPOSITORY
from cli.rabbitmq import Broker
from cli.testing import KEPT

LAUNCHER = REPOSITORY / "canopy"
SHIM = REPOSITORY / "cli" / "child.py"
START_SECONDS = 160.0  # less than a test may take, so that the logs are shown
MODEL_SECONDS = 270.0  # the first time, the model is converted on the way
STOP_SECONDS = 15.0
WAIT_SECONDS = 90.0  # for what a test awaits: longer than a busy machine needs for it
PASSWORD = "an open secret of the tests"

_ADD_PEOPLE = """
import json, sys
import django
django.setup()
from api.accounts.models import User
for name, staff in json.loads(sys.argv[1]).items():
    User.objects.create_user(name, password=sys.argv[2], is_staff=staff)
"""

Tree = dict[str, Any]
RUNNING: list[Path] = []  # homes of the instances that run now
LOG_LINES = 25  # of each log, shown with a failed test
MAX_LINE = 300


class Instance:
    """An instance that says it is ready. `link`: the one-time login link of its last line."""

    def __init__(self, home: Path, link: str) -> None:
        self.home = home
        self.link = link
        parts = urlsplit(link)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.token = parse_qs(parts.query)["token"][0]
        self._keys: dict[str | None, str] = {}

    def record(self) -> dict[str, Any]:
        """The instance file."""
        return json.loads((self.home / "run" / "instance.json").read_text())

    @property
    def broker(self) -> Broker:
        """For node processes that the tests add."""
        record = self.record()
        return Broker(amqp=record["amqp"], management={"admin": record["management"]})

    def canopy(self, *words: str) -> str:
        """Runs a command of the launcher to its end; what it printed on standard output."""
        return self._output([sys.executable, str(LAUNCHER), *words])

    def key(self, user: str | None = None) -> str:
        """The user's API key, made once; without a name the first administrator's."""
        if user not in self._keys:
            options = ["--user", user] if user else []
            self._keys[user] = self.canopy("key", "create", *options).strip()
        return self._keys[user]

    def login_token(self) -> str:
        """A new one-time login token of the administrator, in place of the former one."""
        return self._output([sys.executable, "-m", "api", "login-token"]).strip()

    def add_people(self, **staff: bool) -> None:
        """Creates users with PASSWORD. The value says whether they are staff."""
        self._output([sys.executable, "-c", _ADD_PEOPLE, json.dumps(staff), PASSWORD])

    @contextmanager
    def session(self, token: str) -> Iterator[httpx.Client]:
        """A client logged in with a one-time token; it sends the CSRF token that it was given."""
        with httpx.Client(base_url=self.url, timeout=30) as client:
            answer = client.get("/login", params={"token": token})
            assert answer.status_code == 302, answer.text
            client.get("/api/me")
            client.headers["X-CSRFToken"] = client.cookies["csrftoken"]
            yield client

    @contextmanager
    def program(self, key: str) -> Iterator[httpx.Client]:
        """A client with an API key."""
        with httpx.Client(
            base_url=self.url, timeout=60, headers={"Authorization": f"Bearer {key}"}
        ) as client:
            yield client

    @contextmanager
    def child(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A command of the launcher that runs beside the test, and not longer than it."""
        process = start(
            [sys.executable, str(LAUNCHER), *words], self._environment(), subprocess.DEVNULL
        )
        try:
            yield process
        finally:
            finish(process)

    def python(self, program: str, *arguments: str, text: str = "") -> str:
        """Runs a program with the instance's database; `text` is its standard input."""
        return self._output([sys.executable, "-c", program, *arguments], text)

    def _output(self, command: list[str], text: str = "") -> str:
        done = subprocess.run(
            command,
            input=text,
            cwd=REPOSITORY,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command[-3:]}: {done.stderr}"
        return done.stdout

    def _environment(self) -> dict[str, str]:
        return environment(self.home)


def environment(home: Path) -> dict[str, str]:
    """What every process of the instance in `home` gets."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or not name.startswith(("CANOPY_", "DATABASE_"))
    }
    return {
        **clean,
        "CANOPY_HOME": str(home),
        "DJANGO_SETTINGS_MODULE": "api.settings",
        "PYTHONPATH": str(REPOSITORY),
    }


@contextmanager
def running(
    home: Path,
    *options: str,
    env: Mapping[str, str] | None = None,
    within: float = START_SECONDS,
) -> Iterator[Instance]:
    """`./canopy up` in `home` with these options, ended at the end, even if the tests are killed.

    `env`: what it gets besides `environment`. Fails if it is not ready `within` seconds.
    """
    home.mkdir(parents=True, exist_ok=True)
    log = home / "up.log"
    with log.open("w") as said:
        command = [sys.executable, str(LAUNCHER), "up", "--port", str(free_port()), *options]
        launcher = start(command, {**environment(home), **(env or {})}, said)
    RUNNING.append(home)
    try:
        yield Instance(home, _ready(launcher, within))
    finally:
        finish(launcher)
        RUNNING.remove(home)


def last_lines() -> str:
    """The ends of all logs of the instances that run now: the evidence of a failed test."""
    parts: list[str] = []
    for home in RUNNING:
        for log in (home / "up.log", *sorted((home / "logs").glob("*.log"))):
            with contextlib.suppress(OSError):
                lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
                parts += [f"---- {log}", *(line[:MAX_LINE] for line in lines)]
    return "\n".join(parts)


def start(command: list[str], env: dict[str, str], errors: Any) -> subprocess.Popen[str]:
    """A process that is asked to end when the tests die; its standard output is a pipe."""
    shim = [sys.executable, "-S", "-E", str(SHIM), str(int(signal.SIGTERM)), str(os.getpid())]
    return subprocess.Popen(
        [*shim, *command],
        cwd=REPOSITORY,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> int:
    """Asks the process to end, makes it end if it does not; its exit status."""
    process.terminate()
    try:
        process.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode


def free_port() -> int:
    """A port nobody listens on now."""
    return ports.pick(1)[0]


def _ready(launcher: subprocess.Popen[str], within: float) -> str:
    """The address in the last line of a start; a start that takes too long is ended."""
    limit = threading.Timer(within, launcher.terminate)
    limit.start()
    try:
        for line in launcher.stdout or ():
            if line.startswith("Canopy is ready: "):
                return line.removeprefix("Canopy is ready: ").strip()
    finally:
        limit.cancel()
    pytest.fail(f"canopy up did not become ready:\n{last_lines()}")


# ---- the tree


def tree_when(
    staff: httpx.Client, matches: Callable[[Tree], bool], within: float = WAIT_SECONDS
) -> Tree:
    """The first matching tree in the dashboard's stream; fails after `within` seconds."""
    deadline = time.monotonic() + within
    last: Tree = {}
    with staff.stream("GET", "/api/tree/stream", timeout=within + 10) as events:
        for line in events.iter_lines():
            if line.startswith("data: "):
                last = json.loads(line.removeprefix("data: "))
                if matches(last):
                    return last
            if time.monotonic() > deadline:
                break
    pytest.fail(f"not within {within} s; the last tree: {json.dumps(last, indent=1)}")


def total(tree: Tree, figure: str) -> int:
    """A figure summed over the nodes that live, such as `running`: jobs may be left below the root
    of a test that is over.
    """
    return sum(node[figure] for node in tree["nodes"] if node["state"] != "down")


def at_rest(tree: Tree) -> bool:
    """Nothing runs and nothing waits."""
    return total(tree, "running") == 0 and total(tree, "queued") == 0


def end_jobs(staff: httpx.Client, models: Collection[str]) -> None:
    """Cancels what tests have left running or waiting; returns when the trees are at rest.

    A node that leaves in the middle of an answer takes seconds, and the answer stays in the queue.
    """
    line = staff.get("/api/operate/line", params={"limit": 100}).json()
    for job in (*line["running"], *line["waiting"]):
        if job["model"] in models:
            staff.post(f"/api/operate/line/jobs/{job['request_id']}/cancel")
    tree_when(staff, lambda tree: _work(tree, models) == 0)


def _work(tree: Tree, models: Collection[str]) -> int:
    """Jobs in the trees of these models, those of gone nodes, too."""
    nodes = [node for node in tree["nodes"] if node["model"] in models]
    return sum(node["running"] + node["queued"] for node in nodes)


@contextmanager
def jobs(
    program: httpx.Client, count: int, words: int, model: str = "echo"
) -> Iterator[list[httpx.Response]]:
    """`count` streamed answers of `words` tokens each, cancelled by closing them at the end."""
    body = {
        "model": model,
        "stream": True,
        "max_tokens": words,
        "messages": [{"role": "user", "content": "again"}],
    }
    with ExitStack() as streams:
        yield [
            streams.enter_context(program.stream("POST", "/v1/chat/completions", json=body))
            for _ in range(count)
        ]
