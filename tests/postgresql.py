"""A private PostgreSQL for tests: its own data, on a free port of this machine."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cli.prepare.system import postgresql_programs
from tests.instance import free_port

START_SECONDS = 60
_SETTINGS = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"  # for tests alone


@contextmanager
def private_postgresql() -> Iterator[str]:
    """The URL of a database in an empty cluster; its server ends with the context."""
    programs = postgresql_programs()
    if programs is None:
        pytest.fail("the tests need PostgreSQL: apt-get install postgresql")
    # Not below pytest's folders: nobody but root reaches those, and the server must not be root.
    with TemporaryDirectory(prefix="canopy-postgresql-") as name:
        folder, port = Path(name), free_port()
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        data = str(folder / "data")
        _run(programs / "initdb", "-D", data, "-U", "canopy", "-A", "trust", "-E", "UTF8")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} {_SETTINGS}"
        words = ["-D", data, "-w", "-t", str(START_SECONDS), "-l", str(folder / "log")]
        _run(programs / "pg_ctl", *words, "-o", options, "start")
        try:
            yield f"postgresql://canopy@127.0.0.1:{port}/postgres"
        finally:
            _run(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


def _run(program: Path, *arguments: str) -> None:
    command = [str(program), *arguments]
    user: str | None = None
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres").pw_name
    done = subprocess.run(
        command,
        user=user,
        group=user,
        extra_groups=[] if user else None,
        cwd="/",
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * START_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{program.name}: {done.stdout}"
