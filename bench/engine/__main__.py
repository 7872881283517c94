"""`python -m bench.engine`: without broker and Django, for a machine with little."""

import sys

from bench.engine.command import command
from bench.options import run

if __name__ == "__main__":
    sys.exit(run(command, "bench.engine"))
