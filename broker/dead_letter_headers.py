"""What a dead letter says beside its message: why it is one, and whose it was."""

import time

from broker.wire import Job

HEADER_LETTERS = 1000  # of each text, so that all of them fit one frame
HEADER_ITEMS = 16  # the latest of its trail, and of its faults


def dead_letter_headers(
    reason: str, node: str, job: Job | None = None, faults: tuple[str, ...] = ()
) -> dict[str, object]:
    """What `canopy dead` shows of a dead letter. `at`: Unix seconds."""
    headers: dict[str, object] = {"reason": _header(reason), "node": node, "at": str(time.time())}
    if job is not None:
        headers |= {
            "request_id": _header(job.request_id),
            "model": _header(job.model),
            "user": _header(job.user),
            "trail": [_header(name) for name in job.trail[-HEADER_ITEMS:]],
            "faults": [_header(fault) for fault in faults[-HEADER_ITEMS:]],
        }
    return headers


def _header(text: str) -> str:
    """Any text, cut and cleaned so that AMQP carries it as a header; the body has all of it."""
    return text[:HEADER_LETTERS].encode(errors="replace").decode()
