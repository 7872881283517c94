"""`canopy up` and its ends, with the real broker, real processes and the echo engine."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cli import lock, ports
from cli.home import Home
from tests.instance import WAIT_SECONDS

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CANOPY = [
    sys.executable,
    "-m",
    "cli",
]  # as the launcher starts it; preparation of the machine is not under test here
LAUNCHER = str(REPOSITORY / "canopy")
START_SECONDS = 120
STOP_SECONDS = 30.0

pytestmark = pytest.mark.timeout(240)


class Instance:
    """A CANOPY_HOME of the test's own, and the commands run in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (self.port,) = ports.pick(1)
        self.launchers: list[subprocess.Popen[str]] = []

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs one command to its end."""
        return subprocess.run(
            [*CANOPY, *words],
            cwd=REPOSITORY,
            env=self.env(),
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )

    def launch(self, *options: str) -> subprocess.Popen[str]:
        """`up` in the foreground."""
        launcher = subprocess.Popen(
            [*CANOPY, "up", "--engine", "echo", "--port", str(self.port), *options],
            cwd=REPOSITORY,
            env=self.env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.launchers.append(launcher)
        return launcher

    def up(self, *options: str) -> tuple[subprocess.Popen[str], str]:
        """`up` in the foreground, and its ready line once it has said it."""
        launcher = self.launch(*options)
        said = []
        for line in launcher.stdout or ():
            said.append(line)
            if line.startswith("Canopy is ready: "):
                return launcher, line.strip()
        pytest.fail("never ready:\n" + "".join(said))

    def paths_for_others(self) -> list[str]:
        """What in the state folder anybody but its owner may do something with."""
        paths = []
        for path in (self.home, *self.home.rglob("*")):
            if not path.is_symlink() and path.stat().st_mode & 0o077:
                paths.append(str(path))
        return paths

    def files_with(self, secret: str) -> list[str]:
        """The files of the state folder that hold a text."""
        files = [path for path in self.home.rglob("*") if path.is_file() and not path.is_symlink()]
        return [str(path) for path in files if secret.encode() in path.read_bytes()]

    def record(self) -> dict[str, object]:
        """The instance file."""
        return json.loads((self.home / "run" / "instance.json").read_text())

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this home: the recorded processes and all below them."""
        recorded = [psutil.Process(each["pid"]) for each in self.record()["processes"]]
        below = [child for process in recorded for child in process.children(recursive=True)]
        return list({process.pid: process for process in (*recorded, *below)}.values())

    def end(self) -> None:
        """Leaves nothing, however the test went."""
        self.command("down")
        for launcher in self.launchers:
            if launcher.poll() is None:
                launcher.kill()
            launcher.communicate()

    def env(self) -> dict[str, str]:
        """What every process of the instance gets."""
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CANOPY_", "DATABASE_"))
        }
        return {**clean, "CANOPY_HOME": str(self.home)}


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    made = Instance(tmp_path / "home")
    yield made
    made.end()


def gone(processes: list[psutil.Process], within: float) -> list[psutil.Process]:
    """Those of `processes` that still run after `within` seconds."""
    _, alive = psutil.wait_procs(processes, timeout=within)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def status_of(url: str) -> int:
    with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as answer:
        return int(answer.status)


def users_of(management: str) -> set[str]:
    match = re.fullmatch(r"http://(\w+):([^@]+)@(.+)", management)
    assert match
    login = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    login.add_password(None, f"http://{match[3]}", match[1], match[2])
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(login))
    with opener.open(f"http://{match[3]}/api/users", timeout=WAIT_SECONDS) as answer:
        return {user["name"] for user in json.load(answer)}


def test_up_serves_refuses_a_second_and_ends_on_sigterm(instance: Instance) -> None:
    launcher, ready = instance.up("--nodes", "3", "--fanout", "2")
    assert re.fullmatch(
        rf"Canopy is ready: http://127\.0\.0\.1:{instance.port}/login\?token=\S+", ready
    )
    assert status_of(f"http://127.0.0.1:{instance.port}/readyz") == 200

    record = instance.record()
    assert (instance.home / "run" / "instance.json").stat().st_mode & 0o777 == 0o600
    assert record["pid"] == launcher.pid
    assert {each["name"] for each in record["processes"]} == {
        "launcher",
        "epmd",
        "broker",
        "root",
        "n1",
        "n2",
        "n3",
        "api",
    }
    assert users_of(record["management"]) == {"api", "node", "admin"}, "guest must not exist"

    shown = json.loads(instance.command("status", "--json").stdout)
    assert shown["running"]
    assert all(each["running"] for each in shown["processes"])

    assert instance.paths_for_others() == []
    assert instance.files_with(ready.partition("token=")[2]) == []

    second = instance.command("up", "--engine", "echo", "--port", str(instance.port))
    assert second.returncode == 1
    assert "already runs here" in second.stderr
    assert second.stderr.count("\n") == 1

    everything = instance.processes()
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(STOP_SECONDS) == 0
    assert gone(everything, 0.5) == []
    assert not (instance.home / "run" / "instance.json").exists()


def test_a_killed_launcher_leaves_nothing_and_can_start_again(instance: Instance) -> None:
    launcher, _ = instance.up()
    everything = instance.processes()
    launcher.kill()
    assert gone(everything, STOP_SECONDS) == []

    again = instance.command("up", "--engine", "echo", "--port", str(instance.port), "--detach")
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("Canopy is ready: ")
    everything = instance.processes()

    token = again.stdout.strip().partition("token=")[2]
    assert token
    assert instance.files_with(token) == [], "also in no log of a detached launcher"
    login = instance.command("login")
    assert re.fullmatch(rf"http://127\.0\.0\.1:{instance.port}/login\?token=\S+\n", login.stdout)
    assert status_of(login.stdout.strip()) == 200
    nobody = instance.command("login", "--user", "nobody")
    assert (nobody.returncode, nobody.stderr) == (1, "the user 'nobody' does not exist\n")
    assert instance.paths_for_others() == []

    key = instance.command("key", "create")
    assert key.returncode == 0
    assert re.fullmatch(r"\S+\n", key.stdout), "the key, alone on standard output"

    assert instance.command("down").returncode == 0
    assert gone(everything, 0.5) == []
    assert instance.command("down").stdout == "nothing runs here\n"


@pytest.mark.parametrize("seconds", [0.0, 1.0, 2.5, 4.0])
def test_down_ends_what_is_still_starting(instance: Instance, seconds: float) -> None:
    launcher = subprocess.Popen(
        [LAUNCHER, "up", "--engine", "echo", "--port", str(instance.port), "--detach"],
        env=instance.env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    instance.launchers.append(launcher)
    home = Home(instance.home)
    deadline = time.monotonic() + START_SECONDS
    while not lock.is_held(home):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "is already starting" in instance.command("up", "--engine", "echo").stderr
    time.sleep(seconds)  # wherever it is in its start then
    assert instance.command("status").stdout.startswith(("starting", "Canopy runs"))
    ended = instance.command("down")
    assert ended.stdout.startswith("stopped in "), ended
    launcher.wait(STOP_SECONDS)
    assert not lock.is_held(home)
    assert processes_of(instance.home) == []


def processes_of(home: Path) -> list[str]:
    """Every process that was started for that state folder."""
    commands = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                process.environ().get("CANOPY_HOME") == str(home)
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                commands.append(" ".join(process.cmdline()))
    return commands


def test_several_api_processes_serve_one_port_and_die_with_the_launcher(instance: Instance) -> None:
    launcher, _ = instance.up("--api-processes", "3", "--host", "::1", "--listen", "::1")
    url = f"http://[::1]:{instance.port}"
    assert status_of(f"{url}/readyz") == 200
    pids = {each["name"]: each["pid"] for each in instance.record()["processes"]}
    serving = [psutil.Process(pids[name]) for name in ("api", "api-2", "api-3")]
    everything = instance.processes()
    os.kill(pids["api"], signal.SIGKILL)
    assert all(status_of(f"{url}/healthz") == 200 for _ in range(20)), (
        "nobody is sent to the dead one"
    )
    launcher.kill()
    assert gone([*everything, *serving], STOP_SECONDS) == []
    assert processes_of(instance.home) == []
    with socket.socket(socket.AF_INET6) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("::1", instance.port))


def test_what_crashes_is_restarting_and_comes_back(instance: Instance) -> None:
    launcher, _ = instance.up()
    lines = iter(launcher.stdout or ())
    pids = {each["name"]: each["pid"] for each in instance.record()["processes"]}

    os.kill(pids["n1"], signal.SIGKILL)
    assert until(lines, lambda line: line.startswith("  n1 ended (SIGKILL)"))
    launcher.send_signal(
        signal.SIGSTOP
    )  # it waits a second before the restart: no longer than it takes to ask
    shown = json.loads(instance.command("status", "--json").stdout)
    launcher.send_signal(signal.SIGCONT)
    states = {each["name"]: each["state"] for each in shown["processes"]}
    assert states.pop("n1") == "restarting"
    assert set(states.values()) == {"running"}
    assert until(lines, lambda line: line.startswith("  n1 is back"))


def test_a_port_in_use_is_one_line_and_nothing_is_started(instance: Instance) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", instance.port))
        taken.listen()
        refused = instance.command("up", "--engine", "echo", "--port", str(instance.port))
    assert refused.returncode == 1
    assert refused.stderr == (
        f"canopy: Port {instance.port} is in use on 127.0.0.1. Choose another with --port N.\n"
    )
    assert not (instance.home / "logs" / "broker.log").exists()


def test_a_broken_model_folder_is_one_line(instance: Instance, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    refused = instance.command(
        "up", "--model", str(tmp_path / "broken"), "--port", str(instance.port)
    )
    assert refused.returncode == 1
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("canopy: Preparing the model broken failed: ")
    assert "Traceback" not in refused.stderr
    assert not (instance.home / "logs" / "broker.log").exists()


def test_a_broker_that_does_not_come_up_is_one_line(instance: Instance) -> None:
    (instance.home / "broker" / "data").mkdir(parents=True)
    (instance.home / "broker" / "data" / "canopy@localhost").write_text("not a folder")
    refused = instance.command("up", "--engine", "echo", "--port", str(instance.port))
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("canopy: The broker did not start (log: ")
    assert "Traceback" not in refused.stderr
    assert not (instance.home / "run" / "processes.json").exists()


def until(lines: Iterator[str], wanted: Callable[[str], bool]) -> bool:
    """Reads until a wanted line has come; False when the output ends first."""
    return any(wanted(line) for line in lines)
