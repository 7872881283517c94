"""Django's own middleware, run on the event loop.

Django runs each hook of a MiddlewareMixin in a thread: two hops a middleware and request. The hooks
below do no I/O (session and user are lazy), so they are called directly; only saving a session goes
to the database.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse
from django.middleware.common import CommonMiddleware
from django.middleware.csrf import CsrfViewMiddleware

from api import errors
from api.plans import headers


class _Inline:
    """Replaces MiddlewareMixin's thread hops by plain calls, for hooks without I/O."""

    get_response: Callable[[HttpRequest], Awaitable[HttpResponse]]

    async def __acall__(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse | None = None
        before = getattr(self, "process_request", None)
        if before:
            response = before(request)
        if response is None:
            response = await self.get_response(request)
        after = getattr(self, "process_response", None)
        if after:
            response = after(request, response)
        return response


class Common(_Inline, CommonMiddleware):
    """Checks the Host header and appends slashes, but not where a redirect turns POST into GET."""

    def should_redirect_with_slash(self, request: HttpRequest) -> bool:
        """True if the browser is sent to the same address with a slash."""
        return request.method in {"GET", "HEAD"} and super().should_redirect_with_slash(request)


class Authentication(_Inline, AuthenticationMiddleware):
    """Sets `request.user` and `request.auser`, both lazy."""


class Messages(_Inline, MessageMiddleware):
    """Flash messages, which only the admin uses."""

    async def __acall__(self, request: HttpRequest) -> HttpResponse:
        if not request.path_info.startswith("/admin/"):
            return await self.get_response(request)
        return await super().__acall__(request)


class Csrf(_Inline, CsrfViewMiddleware):
    """CSRF for Django's own views; accounts/auth.py checks the typed endpoints by the same code."""

    async def process_view(self, request: HttpRequest, *view: Any) -> HttpResponse | None:
        return super().process_view(request, *view)


class Sessions(SessionMiddleware):
    """Sessions, loaded lazily; only one that must be saved uses a thread."""

    def process_request(self, request: HttpRequest) -> None:
        """Ignores malformed keys: a quoted cookie may contain U+0000, which PostgreSQL refuses."""
        key = request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")
        if not (key.isascii() and key.isalnum()):
            request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
        super().process_request(request)

    async def __acall__(self, request: HttpRequest) -> HttpResponse:
        self.process_request(request)
        response = await self.get_response(request)
        if request.session.modified:
            return await sync_to_async(self.process_response)(request, response)
        return self.process_response(request, response)


class Outermost:
    """Gives 405 the shape of all other errors, and answers below /v1/ what is left of a plan."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> None:
        if not iscoroutinefunction(get_response):
            raise RuntimeError("Canopy runs under ASGI only")
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        response = await self.get_response(request)
        if response.status_code == 405:
            response = errors.not_allowed(request, response)
        headers.add(request.path_info, response)
        return response
