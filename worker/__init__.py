"""A node's life: start, serve, drain; one job's run; the engines."""

from broker import lean_structlog  # noqa: F401 - before anything imports structlog
