"""A request's deadline: the header X-Canopy-Deadline, or CANOPY_JOB_SECONDS."""

from django.http import HttpRequest

from api.environment import LONGEST_JOB
from api.errors import ApiError
from api.settings import ENV

HEADER = "X-Canopy-Deadline"


def seconds_left(request: HttpRequest) -> float:
    """Seconds until the client stops waiting. Raises ApiError 400 for a header that is not one."""
    text = request.META.get("HTTP_X_CANOPY_DEADLINE")
    if text is None:
        return ENV.job_seconds
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_JOB:  # also false for "nan"
        message = f"{HEADER}: must be a number of seconds above 0, at most {LONGEST_JOB:.0f}"
        raise ApiError(400, message, field=HEADER, code="invalid_value")
    return seconds
