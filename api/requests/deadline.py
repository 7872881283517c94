"""How long an answer is wanted: the header X-Canopy-Deadline, or CANOPY_JOB_SECONDS."""

from django.http import HttpRequest

from api.environment import LONGEST_JOB
from api.errors import ApiError
from api.settings import ENV

HEADER = "X-Canopy-Deadline"


def seconds_wanted(request: HttpRequest) -> float:
    """Seconds from now for which the client wants its answer. Raises ApiError 400 for a header that is no such time."""
    text = request.META.get("HTTP_X_CANOPY_DEADLINE")
    return ENV.job_seconds if text is None else _seconds(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_JOB:  # nor is it for "nan"
        message = f"{HEADER}: must be a number of seconds above 0, at most {LONGEST_JOB:.0f}"
        raise ApiError(400, message, field=HEADER)
    return seconds
