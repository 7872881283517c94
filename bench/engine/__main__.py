"""`python -m bench.engine`: the benchmark alone, without what the other benchmarks import."""

import sys

import structlog
import typer

from bench.engine.command import command


def main() -> None:
    """Runs it; logs go to standard error."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(command)
    app(prog_name="bench.engine")


if __name__ == "__main__":
    main()
