"""Two minutes of random faults under load, by a fixed seed: no answer is lost, repeated or hangs.

The run is `./canopy bench chaos`; a longer one, or another seed, is a command away.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.home import module_command, module_environment
from tests.faults.table import Row

MINUTES = 2
SEED = 2386  # kills the API and the broker, stops the root, drains, attaches, rolls
SECONDS = 480  # for all of it: the start, the faults, the last answers, the end


@pytest.mark.timeout(SECONDS + 30)
def test_two_minutes_of_chaos(tmp_path: Path, record: Callable[[Row], None]) -> None:
    result = tmp_path / "chaos.json"
    command = module_command(
        "bench", "chaos", "--seconds", str(60 * MINUTES), "--seed", str(SEED), "--json", str(result)
    )
    done = subprocess.run(
        [*command, "--keep-logs", str(tmp_path / "logs")],
        env=module_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.exists(), done.stdout
    facts = json.loads(result.read_text())["facts"]
    record(row(facts))
    assert done.returncode == 0, done.stdout
    assert facts["endings"]["answered"] > 100, done.stdout  # users did ask all the time


def row(facts: dict[str, Any]) -> Row:
    """The run in the table of faults. Cancelled readers got what they asked for."""
    ended = facts["endings"]
    return Row(
        fault=f"{len(facts['schedule'])} random faults in {MINUTES} minutes",
        where="7 nodes, 50 users",
        accepted=sum(count for ending, count in ended.items() if ending != "refused"),
        answered=ended["answered"] + ended["cancelled"],
        told=ended["broken off"] + ended["error"],
        lost=ended["lost"],
        wrong=ended["repeated"] + ended["missing"] + ended["usage"],
        recoveries=(facts["slowest_recovery_seconds"],),
    )
