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
SEED = 14  # kills a node, the API and the broker, rolls, drains, stops the root
# For all of it, which has deadlines of its own: the start (120 s), the faults, the last answers
# (150 s), until the tree is at rest (60 s), the end.
SECONDS = 480


@pytest.mark.timeout(SECONDS + 30)
def test_two_minutes_of_chaos(tmp_path: Path, record: Callable[[Row], None]) -> None:
    result = tmp_path / "chaos.json"
    command = module_command(
        "bench", "chaos", "--seconds", str(60 * MINUTES), "--seed", str(SEED), "--json", str(result)
    )
    output = tmp_path / "output.txt"
    try:
        with output.open("w") as file:
            done = subprocess.run(
                [*command, "--keep-logs", str(tmp_path / "logs")],
                env=module_environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
                check=False,
            )
    finally:
        print(output.read_text())  # which pytest shows if the test fails
    assert result.exists()
    facts = json.loads(result.read_text())["facts"]
    record(row(facts))
    assert done.returncode == 0
    assert facts["endings"]["answered"] > 100  # users did ask all the time


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
        wrong=ended["wrong"],
        recoveries=tuple(facts["recoveries"]),
    )
