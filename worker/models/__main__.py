"""`python -m worker.models prepare NAME_OR_PATH [--home DIR]`: progress lines, then the folder to load."""

import argparse
import sys
from pathlib import Path

from worker.models import ModelError, home
from worker.models.prepare import prepare


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 2 with one line on standard error for a model that cannot be prepared."""
    parser = argparse.ArgumentParser(prog="python -m worker.models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "prepare", help="makes a model ready to load and prints its folder"
    )
    command.add_argument("model", help="gemma-3-270m, a folder, or a Hugging Face id")
    command.add_argument(
        "--home", type=Path, default=None, help="state folder (default: CANOPY_HOME)"
    )
    options = parser.parse_args(arguments)
    try:
        folder = prepare(options.model, (options.home or home()).absolute(), say=_say)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _say(str(folder))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
