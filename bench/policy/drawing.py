"""The picture of a run, drawn by `plot.py` in an environment of the benchmark's own: Canopy needs no matplotlib."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench import extras
from bench.policy.tables import Results, saturated
from bench.report import say

MATPLOTLIB = "matplotlib==3.11.2"
_SCRIPT = Path(__file__).with_name("plot.py")


class NotDrawn(Exception):
    """The picture could not be made; the text says why."""


def picture(law: str, results: Results, notes: str) -> dict[str, object]:
    """What `plot.py` reads: a line a discipline, up to where it saturates."""
    disciplines = list(dict.fromkeys(discipline for each, _, discipline in results if each == law))
    return {
        "law": law,
        "notes": notes,
        "lines": [_line(law, name, results) for name in disciplines],
    }


def _line(law: str, discipline: str, results: Results) -> dict[str, object]:
    loads = sorted(load for each, load, name in results if (each, name) == (law, discipline))
    stable = [load for load in loads if not saturated(results[law, load, discipline])]
    spreads = [results[law, load, discipline].figures.in_system for load in stable]
    return {
        "name": discipline,
        "loads": stable,
        "mean": [spread.mean for spread in spreads],
        "p99": [spread.p99 for spread in spreads],
        "saturates": len(stable) < len(loads),
    }


def draw(pictures: Sequence[dict[str, object]], folder: Path) -> list[Path]:
    """Writes `policy.png` and `policy.svg`. Raises NotDrawn, and NotStarted if matplotlib cannot be installed."""
    folder.mkdir(parents=True, exist_ok=True)
    python = extras.environment("plot", MATPLOTLIB)
    drawn = subprocess.run(
        [python, _SCRIPT, folder],
        input=json.dumps(pictures),
        capture_output=True,
        text=True,
        check=False,
    )
    if drawn.returncode:
        raise NotDrawn(
            drawn.stderr.strip().splitlines()[-1]
            if drawn.stderr.strip()
            else "plot.py said nothing"
        )
    files = [folder / f"policy.{kind}" for kind in ("png", "svg")]
    say("drawn: " + ", ".join(map(str, files)))
    return files
