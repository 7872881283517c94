"""Who may call an endpoint: the one place where keys, sessions and CSRF tokens are checked.

A request with an Authorization header is judged by that header alone, never by its cookies, and
needs no CSRF token; without one, X-Api-Key counts, which Anthropic's clients send. Every other
request that changes something needs one, logged in or not.
"""

from typing import cast

from django.conf import settings
from django.contrib.auth import aget_user
from django.contrib.sessions.backends.db import SessionStore
from django.http import HttpRequest, HttpResponse, QueryDict
from django.middleware.csrf import CsrfViewMiddleware
from ninja.security.http import HttpAuthBase

from api import errors
from api.accounts import scopes
from api.accounts.lockout import address_of
from api.accounts.models import User
from api.context import app
from api.errors import ApiError, NotLoggedIn
from api.http.internal import InternalRequest


class AuthRequest(HttpRequest):
    """A request that passed one of the checks below."""

    auth: User


def _bearer(request: HttpRequest) -> str | None:
    """The key that the request sends; None without an Authorization and an X-Api-Key header."""
    header = request.META.get("HTTP_AUTHORIZATION")  # request.headers would parse them all
    if header is None:
        key: str | None = request.META.get("HTTP_X_API_KEY")
        return key if key is None else key.strip()
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def _key_owner(request: HttpRequest, key: str) -> User:
    """Also notes the key, for the limits of what the request submits."""
    owner = await app().keys.verify(key, address_of(request)) if key else None
    if owner is None:
        raise ApiError(401, "this API key is not valid", code="invalid_api_key")
    owner.scope.check_path(request.path_info)
    scopes.current.set(owner.scope)
    app().plans.enter(owner.user)
    return owner.user


class _CsrfCheck(CsrfViewMiddleware):
    """Django's check, which says the reason instead of answering."""

    def problem(self, request: HttpRequest) -> str | None:
        """Why the request is refused; None if it is not."""
        self.process_request(request)
        reason: str | None = self.process_view(request, _no_view, (), {})
        return reason

    def _reject(self, request: HttpRequest, reason: str) -> str:
        return reason


def _no_view() -> None:
    """In place of the view, which decides nothing here."""


_csrf = _CsrfCheck(lambda request: HttpResponse())


def _require_csrf_token(request: HttpRequest) -> None:
    # The token is in a header. Without this, Django would look for it in the body, as a form.
    request.POST = QueryDict()
    reason = _csrf.problem(request)
    if reason is not None:
        raise errors.csrf_refusal(reason)


async def is_known(request: HttpRequest) -> bool:
    """Whether the request's headers hold a valid key or, without any, a session of an active user.

    Grants nothing: the endpoint decides by its own rules.
    """
    key = _bearer(request)
    if key is not None:
        return bool(key) and await app().keys.verify(key, address_of(request)) is not None
    session = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    if session is None:
        return False
    request.session = SessionStore(session)
    user = await aget_user(request)
    return bool(user.is_authenticated)


class Key(HttpAuthBase):
    """Programs: an API key, and nothing else."""

    openapi_scheme = "bearer"

    async def __call__(self, request: HttpRequest) -> User:
        """Raises ApiError 401."""
        if isinstance(request, InternalRequest):
            app().plans.enter(request.acts_for)
            return request.acts_for
        key = _bearer(request)
        if key is None:
            raise ApiError(
                401, "send an API key: Authorization: Bearer KEY", code="invalid_api_key"
            )
        return await _key_owner(request, key)


class Member(HttpAuthBase):
    """Anyone with an account: an API key, or a session and a CSRF token."""

    openapi_scheme = "bearer"

    async def __call__(self, request: HttpRequest) -> User:
        """Raises ApiError 401 (nobody) or 403 (no CSRF token)."""
        key = _bearer(request)
        if key is not None:
            return await _key_owner(request, key)
        user = await request.auser()
        if not user.is_authenticated:
            raise NotLoggedIn
        _require_csrf_token(request)
        member = cast(User, user)
        app().plans.enter(member)
        return member


class Session(Member):
    """People in a browser. An API key must not make other keys, or take the account over."""

    async def __call__(self, request: HttpRequest) -> User:
        """Raises ApiError 401 (nobody) or 403 (an API key, or no CSRF token)."""
        key = _bearer(request)
        if key is not None:
            await _key_owner(request, key)
            raise ApiError(
                403, "an API key cannot do this: log in on the page", code="login_needed"
            )
        return await super().__call__(request)


class Staff(Member):
    """Members with `is_staff`."""

    async def __call__(self, request: HttpRequest) -> User:
        """Raises ApiError 401 or 403."""
        user = await super().__call__(request)
        if not user.is_staff:
            raise ApiError(403, "only staff may see or change the tree", code="staff_only")
        return user


class Administrator(Staff):
    """Staff who may do everything: `is_superuser`."""

    async def __call__(self, request: HttpRequest) -> User:
        """Raises ApiError 401 or 403."""
        user = await super().__call__(request)
        if not user.is_superuser:
            raise ApiError(403, "only administrators may do this", code="administrators_only")
        return user


class Anyone(HttpAuthBase):
    """Also people who are not logged in; their CSRF token must prove that the page is ours."""

    openapi_scheme = "bearer"

    async def __call__(self, request: HttpRequest) -> bool:
        """Raises ApiError 403 without a CSRF token where one is needed."""
        _require_csrf_token(request)
        return True
