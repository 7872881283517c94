"""How much of a plan is left, in headers that SDKs know: OpenAI's, and Anthropic's."""

from datetime import UTC, datetime

from django.http.response import HttpResponseBase

from api.context import app
from api.errors import NotRunning
from api.plans import plans


def add(path: str, response: HttpResponseBase) -> None:
    """Adds them below /v1/, as far as the user's plan has limits and this process knows them."""
    subject = plans.current.get()
    if subject is None or not path.startswith("/v1/"):
        return
    try:
        book = app().plans
    except NotRunning:
        return
    now = book.now()
    for kind, meter in book.meters(subject):
        left, seconds = meter.remaining(), meter.seconds(now)
        response[f"x-ratelimit-limit-{kind}"] = str(meter.limit)
        response[f"x-ratelimit-remaining-{kind}"] = str(left)
        response[f"x-ratelimit-reset-{kind}"] = duration(seconds)
        if path.startswith("/v1/messages"):
            response[f"anthropic-ratelimit-{kind}-limit"] = str(meter.limit)
            response[f"anthropic-ratelimit-{kind}-remaining"] = str(left)
            reset = datetime.fromtimestamp(now + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            response[f"anthropic-ratelimit-{kind}-reset"] = reset


def duration(seconds: int) -> str:
    """As OpenAI writes it, such as 23h59m1s."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h" if hours else ""
    if hours or minutes:
        text += f"{minutes}m"
    return f"{text}{rest}s"
