"""Who may read /metrics: programs on this machine, staff by their key, and who has the token."""

import hmac
from ipaddress import ip_network

from django.conf import settings
from django.http import HttpRequest

from api.accounts.auth import Staff
from api.environment import LOOPBACK, Environment
from api.server.limits import is_within

_LOCAL = tuple(ip_network(network) for network in LOOPBACK.split())
_FORWARDED = ("HTTP_FORWARDED", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_VIA")


async def check(request: HttpRequest, env: Environment) -> None:
    """Returns if the request may read. Raises ApiError 401 or 403.

    Whoever says who they are is judged by that, also on this machine.
    """
    token = _bearer(request)
    anonymous = token is None and settings.SESSION_COOKIE_NAME not in request.COOKIES
    if anonymous and is_local(request, env):
        return
    if token is not None and env.metrics_token and _is_same(token, env.metrics_token):
        return
    await Staff()(request)


def is_local(request: HttpRequest, env: Environment) -> bool:
    """True if the request comes from this machine and was not passed on by a proxy."""
    if env.public_url is not None:
        return False
    if any(name in request.META for name in _FORWARDED):
        return False
    return is_within(str(request.META.get("REMOTE_ADDR", "")), _LOCAL)


def _bearer(request: HttpRequest) -> str | None:
    header = request.META.get("HTTP_AUTHORIZATION", "")
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _is_same(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode("utf-8", "surrogateescape"), right.encode())
