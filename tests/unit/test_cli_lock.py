"""The lock of a CANOPY_HOME: one holder, known at once, handed on without a gap."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli import lock
from cli.errors import CliError
from cli.home import REPOSITORY, Home

ADOPT = """
import os, sys
from pathlib import Path
from cli import lock
from cli.home import Home
held = lock.take(Home(Path(sys.argv[1])))
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_second_holder_is_refused_and_the_first_is_known(home: Home) -> None:
    assert not lock.is_held(home)
    with lock.hold(home):
        assert lock.is_held(home)
        assert lock.holder(home) == lock.Holder.current()
        with pytest.raises(CliError, match="is already starting or stopping here"):
            lock.take(home)
    assert not lock.is_held(home)


def test_a_holder_that_is_gone_is_nobody_even_if_its_pid_is_used_again(home: Home) -> None:
    home.make()
    home.lock_file.write_text(f'{{"pid": {os.getpid()}, "start_ticks": 1}}')
    assert lock.holder(home) is None
    for torn in ("", "{", "[]", '{"pid": 1}', '{"pid": "x", "start_ticks": null}'):
        home.lock_file.write_text(torn)
        assert lock.holder(home) is None


def test_the_lock_passes_to_another_program_without_a_gap(home: Home) -> None:
    mine = lock.take(home)
    heir = subprocess.Popen(
        [sys.executable, "-c", ADOPT, str(home.path)],
        cwd=REPOSITORY,
        env={**os.environ, lock.LOCK_FD: str(mine.fd)},
        pass_fds=[mine.fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert heir.stdout
    pid = int(heir.stdout.readline())
    mine.release()
    assert lock.is_held(home)
    holder = lock.holder(home)
    assert holder is not None
    assert holder.pid == pid
    heir.communicate("")
    assert not lock.is_held(home)


def test_a_number_that_names_another_file_is_no_lock(home: Home, tmp_path: Path) -> None:
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    try:
        for number in (str(other), "9999", "-1", "x"):
            os.environ[lock.LOCK_FD] = number
            with lock.hold(home):
                assert lock.holder(home) == lock.Holder.current()
            assert lock.LOCK_FD not in os.environ
    finally:
        os.environ.pop(lock.LOCK_FD, None)
        os.close(other)
    assert (tmp_path / "other").read_text() == ""
