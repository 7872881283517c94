"""Until when an answer is wanted: the header X-Canopy-Deadline, or CANOPY_JOB_SECONDS."""

import time

from django.http import HttpRequest

from api.environment import LONGEST_JOB
from api.errors import ApiError
from api.settings import ENV

HEADER = "X-Canopy-Deadline"


def ordinary() -> float:
    """The moment (Unix seconds) until which the answer to a request of now is wanted, if it names none."""
    return time.time() + ENV.job_seconds


def until(request: HttpRequest) -> float:
    """The moment until which the client wants its answer. Raises ApiError 400 for a header that is no such time."""
    text = request.META.get("HTTP_X_CANOPY_DEADLINE")
    return ordinary() if text is None else time.time() + _seconds(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_JOB:  # nor is it for "nan"
        message = f"{HEADER}: must be a number of seconds above 0, at most {LONGEST_JOB:.0f}"
        raise ApiError(400, message, field=HEADER)
    return seconds
