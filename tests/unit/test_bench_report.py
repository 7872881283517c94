"""What a result says in print and as JSON."""

import json
from pathlib import Path

import click
import pytest

from bench import options
from bench.report import Report, Table
from bench.stats import Spread


def report() -> Report:
    rows = [{"stage": "bare", "ms": 1.256, "n": 5}, {"stage": "client", "ms": None, "n": 6}]
    return Report("latency", {"requests": 5}, [Table("times", rows)], ["a note"], {"right": True})


def test_numbers_are_rounded_and_missing_ones_are_a_dash() -> None:
    assert report().text().splitlines()[:7] == [
        "times",
        "",
        "| stage  |   ms |   n |",
        "| ------ | ---: | --: |",
        "| bare   | 1.26 |   5 |",
        "| client |    - |   6 |",
        "",
    ]
    assert "- a note" in report().text()


def test_a_result_that_could_not_be_kept_is_not_begun() -> None:
    command = options.json_file(click.Command("probe"))
    with pytest.raises(click.BadParameter, match="no folder /no"):
        command.main(["--json", "/no/file.json"], standalone_mode=False)


def test_json_has_all_that_makes_a_number_comparable(tmp_path: Path) -> None:
    report().write(tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["tables"]["times"][0] == {"stage": "bare", "ms": 1.256, "n": 5}
    assert result["settings"] == {"requests": 5}
    assert {"cpu", "cores", "memory_gb", "load"} <= set(result["machine"])
    assert {"canopy", "python", "pika"} <= set(result["versions"])
    assert result["date"].endswith("+00:00")


def test_a_spread_without_samples_is_a_row_of_dashes() -> None:
    assert Spread.of([]).cells("TTFT", "p50", "max") == {"TTFT p50": None, "TTFT max": None}
    assert Spread.of([0.002, 0.004], 1000).cells("TTFT", "p50") == {"TTFT p50": 3.0}
