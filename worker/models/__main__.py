"""`python -m worker.models prepare MODEL [--home DIR]`: progress, then the folder to load."""

import argparse
import sys
from pathlib import Path

from worker.errors import ModelError
from worker.models import home
from worker.models.prepare import prepare


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line on standard error if the model cannot be prepared."""
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
