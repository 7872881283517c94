"""`python -m api plan …`: what it takes."""

import argparse

import pytest

from api.plans import commands


@pytest.mark.parametrize(
    ("option", "text"),
    [("--jobs-running", "2147483648"), ("--streams", "0"), ("--tokens-per-day", "9" * 30)],
)
def test_a_limit_that_no_database_holds_is_refused(option: str, text: str) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    commands.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["set", "team", option, text])
    assert parser.parse_args(["set", "team", option, "1000"]).name == "team"
