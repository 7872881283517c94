"""A machine's link is cut, which no process and no end of a connection tells anybody."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.home import REPOSITORY
from tests.faults.link import JOBS

SECONDS = 200
PAUSE = 10.0  # of a stream whose node is cut off; noticed by kernels after 6 s, by pings after 8
REJOIN = 20.0


@pytest.mark.timeout(SECONDS + 20)
@pytest.mark.parametrize("way", ["tls", "tunnel"])
def test_streams_of_a_machine_that_is_cut_off_go_on_elsewhere(way: str, tmp_path: Path) -> None:
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-m", "tests.faults.link"]
    finished = subprocess.run(
        [*command, str(tmp_path), way],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    seen = json.loads(finished.stdout.splitlines()[-1])
    assert 0 < seen["streams"] < JOBS
    assert seen["faults"] == []
    assert seen["pause"] < PAUSE, seen
    assert seen["rejoined"] is not None, seen
    assert seen["rejoined"] < REJOIN, seen
