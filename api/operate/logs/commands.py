"""`python -m api logs …`: the logs on the command line (`./canopy logs`)."""

import argparse
import sys
import time
from collections.abc import Iterable
from datetime import datetime

from api.operate.logs.files import Tails, log_files
from api.operate.logs.lines import LEVELS, Filter, LogLine, encode

LOOK_SECONDS = 0.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `logs`."""
    parser.add_argument("--process", default="")
    parser.add_argument("--level", choices=LEVELS, default="info")
    parser.add_argument("--request", default="")
    parser.add_argument("--lines", type=int, default=100)
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")


def run(options: argparse.Namespace) -> int:
    """Prints the lines; returns the exit status."""
    from api import environment

    folder = environment.current().home / "logs"
    files = log_files(folder)
    known = [file.process for file in files]
    if options.process and options.process not in known:
        names = ", ".join(known) or "none"
        print(f"there is no log of {options.process!r} here; there are: {names}", file=sys.stderr)
        return 1
    chosen = Filter(options.level, options.request)
    with Tails(folder, options.process) as tails:
        _print(tails.last(chosen, options.lines), options)
        try:
            while options.follow:
                time.sleep(LOOK_SECONDS)
                _print(tails.grown(chosen), options)
        except KeyboardInterrupt:
            return 130
    return 0


def _print(lines: Iterable[LogLine], options: argparse.Namespace) -> None:
    for line in lines:
        if options.json:
            print(encode(line))
        elif options.process:
            print(line.text)
        else:
            print(f"{_clock(line.at)}  {line.process:<12}  {line.text}")
    sys.stdout.flush()


def _clock(at: float | None) -> str:
    if at is None:
        return "        "
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S")
