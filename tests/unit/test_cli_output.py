"""Logs and what the launcher says: bounded, and no failed write stops anything."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import console
from cli.console import Console
from cli.home import REPOSITORY
from cli.logfile import LogFile


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process may grow: writes fail as on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_log_stays_below_its_bound_while_it_is_written(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "n1.log", limit=1000)
    for number in range(500):
        log.write(f"line {number:>6}\n".encode())
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["n1.log", "n1.log.1", "n1.log.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())
    kept = "".join((tmp_path / name).read_text() for name in reversed(files))
    numbers = [int(line.split()[1]) for line in kept.splitlines()]
    assert numbers == list(range(numbers[0], 500)), "the newest, in order, without a gap"


def test_a_log_of_an_earlier_run_counts(tmp_path: Path) -> None:
    (tmp_path / "n1.log").write_bytes(b"x" * 900)
    log = LogFile(tmp_path / "n1.log", limit=1000)
    log.write(b"y" * 200)
    log.close()
    assert (tmp_path / "n1.log").read_bytes() == b"y" * 200


def test_a_log_on_a_full_disk_loses_lines_and_says_so(tmp_path: Path, full_disk: None) -> None:
    log = LogFile(tmp_path / "n1.log")
    for _ in range(10):
        log.write(b"lost line\n")
    resource.setrlimit(
        resource.RLIMIT_FSIZE,
        (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]),
    )
    log.write(b"first line again\n")
    log.close()
    note, line = (tmp_path / "n1.log").read_text().splitlines()
    assert note.startswith("[100 bytes of this log are missing: ")
    assert line == "first line again"


def test_a_log_in_a_folder_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "gone" / "n1.log")
    log.write(b"lost\n")
    (tmp_path / "gone").mkdir()
    log.write(b"kept\n")
    log.close()
    assert (tmp_path / "gone" / "n1.log").read_text().endswith("kept\n")


SAYS = """
import sys
from cli.console import Console
console = Console()
for number in range(5000):
    console.say("x" * 100)
    console.result("y" * 100)
console.close(0.2)
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_output_that_nobody_reads_stops_nothing(stream: str) -> None:
    """A full pipe: a write of our own to it would wait for ever."""
    reading, writing = os.pipe()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: writing}
    try:
        done = subprocess.run(
            [sys.executable, "-c", SAYS], cwd=REPOSITORY, timeout=30, check=False, **quiet
        )
    finally:
        os.close(reading)
        os.close(writing)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "redirection", ["2>&-", ">&-", ">&- 2>&- <&-", "2> /dev/full", "> /dev/full"]
)
def test_a_closed_or_full_output_stops_nothing(redirection: str, tmp_path: Path) -> None:
    check = SAYS.replace(
        "import sys", "from cli.console import open_standard_streams\nopen_standard_streams()"
    )
    check += (
        "import os, sys; os.stat(0), os.stat(1), os.stat(2); open(sys.argv[1], 'w').write('done')"
    )
    command = f'exec "$0" -c "$1" "$2" {redirection}'
    words = ["bash", "-c", command, sys.executable, check, str(tmp_path / "result")]
    assert subprocess.run(words, cwd=REPOSITORY, timeout=30, check=False).returncode == 0
    assert (tmp_path / "result").read_text() == "done"


def test_a_detached_launchers_log_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LOG_BYTES", 1000)
    log = tmp_path / "up.log"
    kept = os.dup(2)
    fd = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(fd, 2)
    try:
        said = Console(log)
        for number in range(200):
            said.say(f"line {number}")
        said.close(10)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(fd)
    assert log.stat().st_size < 1100
    assert (tmp_path / "up.log.1").stat().st_size < 1100
    assert log.read_text().endswith("  line 199\n")


def test_the_journal_is_known_by_what_systemd_says_and_a_container_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("container", raising=False)
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        for value, expected in (
            (f"{status.st_dev}:{status.st_ino}", True),
            ("1:2", False),
            ("", False),
        ):
            monkeypatch.setenv("JOURNAL_STREAM", value)
            assert console.is_kept(stream.fileno()) is expected
        monkeypatch.setenv("container", "oci")
        assert console.is_kept(stream.fileno())
