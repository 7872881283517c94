"""`python -m worker.models prepare MODEL [--home DIR]`: progress, then the folder to load."""

import argparse
import sys
from pathlib import Path

from worker.errors import ModelError
from worker.models import PACKAGED, home
from worker.models.prepare import prepare


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line on standard error if the model cannot be prepared."""
    parser = argparse.ArgumentParser(prog="python -m worker.models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "prepare", help="makes a model ready to load and prints its folder"
    )
    packaged = ", ".join(PACKAGED)
    command.add_argument("model", help=f"{packaged}, a folder, or a Hugging Face id")
    command.add_argument(
        "--home", type=Path, default=None, help="state folder (default: CANOPY_HOME)"
    )
    command.add_argument(
        "--most-weights", type=int, metavar="BYTES", help="download no model with larger weights"
    )
    options = parser.parse_args(arguments)
    try:
        at = (options.home or home()).absolute()
        folder = prepare(options.model, at, say=_say, most_weights=options.most_weights)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _say(str(folder))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
