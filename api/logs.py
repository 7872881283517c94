"""Logging of the API process: one line a fact, on standard error."""

import logging
import sys

import structlog


def configure(level: int = logging.INFO) -> None:
    """Sends structlog's and the standard library's records through one formatter."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    # Every refused request is already answered with its reason; httpx would log each poll of the management API.
    logging.getLogger("django.request").addFilter(lambda record: record.exc_info is not None)
    for noisy in ("django.security.csrf", "httpx", "httpcore", "pika"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
