"""429: what of a user's plan is exceeded, and when that is over."""

from api.errors import ApiError
from api.plans.limits import Kind, PlanLimits
from api.requests.position import rounded

RETRY_AFTER = 5  # seconds, where jobs must end first
CODES: dict[Kind, str] = {"requests": "rate_limit_exceeded", "tokens": "tokens_limit_exceeded"}
_UNITS: dict[Kind, str] = {"requests": "requests a minute", "tokens": "tokens a day"}


def used_up(kind: Kind, limits: PlanLimits, seconds: int) -> ApiError:
    """An allowance is used up for so many seconds."""
    most = limits.of(kind) or 0
    return ApiError(
        429,
        f"your plan {limits.name!r} allows {most} {_UNITS[kind]}, and they are used up: "
        f"try again in {rounded(seconds)}",
        code=CODES[kind],
        params={"most": most, "seconds": seconds},
        headers={"Retry-After": str(seconds)},
    )


def too_many_jobs(limits: PlanLimits, count: int) -> ApiError:
    """As many jobs as the plan allows run and wait."""
    return ApiError(
        429,
        f"your plan {limits.name!r} allows {limits.jobs_running} running and "
        f"{limits.jobs_waiting} waiting jobs, and you have {count}: try again when one has ended",
        code="jobs_limit",
        params={"most": limits.jobs_open or 0},
        headers={"Retry-After": str(RETRY_AFTER)},
    )


def too_many_streams(most: int) -> ApiError:
    """As many streams of one answer as the plan allows are open."""
    return ApiError(
        429,
        f"you read this answer in {most} streams already: close one first",
        code="streams_limit",
        params={"most": most},
        headers={"Retry-After": str(RETRY_AFTER)},
    )
