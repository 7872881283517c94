"""`python -m bench NAME`, which people start as `./canopy bench NAME`. A new benchmark is a module and a line here."""

import signal
import sys
from collections.abc import Callable

import structlog
import typer

from bench import hello, latency
from bench.chaos import command as chaos
from bench.dispatch.command import command as dispatch
from bench.engine import command as engine
from bench.fair import command as fair
from bench.gpu import command as gpu
from bench.instance import NotStarted
from bench.policy import command as policy
from bench.scale import command as scale
from bench.soak import command as soak
from bench.streams.command import command as http

BENCHMARKS: dict[str, Callable[..., None]] = {
    "latency": latency.command,
    "hello": hello.command,
    "chaos": chaos.command,
    "soak": soak.command,
    "dispatch": dispatch,
    "policy": policy.command,
    "scale": scale.command,
    "fair": fair.command,
    "http": http,
    "engine": engine.command,
    "gpu": gpu.command,
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


@app.callback()
def _always_named() -> None:
    """Benchmarks of Canopy. Each starts an instance of its own and ends it."""


def main() -> int:
    """Runs the benchmark; whatever ends it, its instance is ended too."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # an exception, so that `finally` is reached
    try:
        app(prog_name="canopy bench")
    except NotStarted as error:
        print(f"canopy bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
