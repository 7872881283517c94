"""The Django project: see README.md."""

from broker import lean_structlog  # noqa: F401 - before anything imports structlog
