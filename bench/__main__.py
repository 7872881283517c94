"""`python -m bench NAME`, or `./canopy bench NAME`. A new benchmark is a module and a line here."""

import signal
import sys
from collections.abc import Callable

import structlog
import typer

from bench.chaos.command import command as chaos
from bench.dispatch.command import command as dispatch
from bench.engine.command import command as engine
from bench.errors import BenchError
from bench.fair.command import command as fair
from bench.http.command import command as http
from bench.policy.command import command as policy

BENCHMARKS: dict[str, Callable[..., None]] = {
    "engine": engine,
    "dispatch": dispatch,
    "http": http,
    "policy": policy,
    "fair": fair,
    "chaos": chaos,
}

app = typer.Typer(
    help="Benchmarks of Canopy. Each starts an instance of its own and ends it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _command in BENCHMARKS.items():
    app.command(name=_name)(_command)


def main() -> int:
    """Runs the benchmark; whatever ends it, what it started is ended too."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception reaches every `finally`
    try:
        app(prog_name="canopy bench")
    except BenchError as error:
        print(f"canopy bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
